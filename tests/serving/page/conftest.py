import pytest
from browsing import chromium, opened


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    with chromium() as running:
        yield running


@pytest.fixture
def page(browser, server):
    """The page of the shipped server; on leaving, its console must be silent."""
    with opened(browser, server.url) as page:
        yield page
