import pytest

from app.detection import store
from app.serving.errors import PROBLEMS


def test_the_probes_answer(client):
    """The process is alive, and ready with a model of the store."""
    assert client.get("/livez").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["model"]["name"] == "mnist"


def test_the_highest_version_serves(client, shipped_store):
    """Unless one is pinned, the latest version of the store answers."""
    assert str(client.get("/readyz").json()["model"]["version"]) == store.find(shipped_store, "mnist").name


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.type)
def test_every_problem_type_leads_to_its_meaning(client, problem):
    """The `type` of a problem is a path of this server, where it is explained."""
    response = client.get(f"/problems/{problem.type}")
    assert response.status_code == 200
    assert problem.title in response.text
    assert client.get("/problems/nonsense").status_code == 404
