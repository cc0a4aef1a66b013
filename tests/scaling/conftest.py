import pytest
from environments import installed
from live import ROOT


@pytest.fixture(scope="session")
def ray_python(request):
    """The Python of an environment with Ray, and with the server and its metadata; the tests run the code of this folder."""
    return installed("ray[data,serve]", request.config.cache.mkdir("ray"), ROOT)
