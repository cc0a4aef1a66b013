import pytest
from browsing import chromium


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; one for all tests, because a process can run Playwright only once."""
    with chromium() as running:
        yield running
