import pytest
from browsing import opened


@pytest.fixture
def page(browser, server):
    """The page of the shipped server; on leaving, its console must be silent."""
    with opened(browser, server.url) as page:
        yield page
