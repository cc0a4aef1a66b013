import pytest
from browsing import chromium


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium for the tests of a file. While it runs, asyncio.run() fails in this process."""
    with chromium() as running:
        yield running
