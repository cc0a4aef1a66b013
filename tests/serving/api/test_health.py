import asyncio
import threading
from types import SimpleNamespace

import pytest

from app.detection import store
from app.serving.api.health import HealthEndpoints, ServerStatus
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


def test_metrics_are_written_beside_the_event_loop_and_one_at_a_time():
    """Many scrapes at once occupy one thread, and never the event loop's."""
    threads, at_once, most = set(), 0, 0
    pause = threading.Event()

    class Metrics:
        flush = staticmethod(lambda: None)
        set_in_flight = staticmethod(lambda requests: None)

        def text(self):
            nonlocal at_once, most
            threads.add(threading.current_thread())
            at_once += 1
            most = max(most, at_once)
            pause.wait(0.01)
            at_once -= 1
            return b"numbers"

    async def scrape():
        endpoints = HealthEndpoints([], ServerStatus(None, SimpleNamespace(in_flight=0), Metrics()))
        return await asyncio.gather(*(endpoints.metrics() for _ in range(5)))

    assert {response.body for response in asyncio.run(scrape())} == {b"numbers"}
    assert threading.current_thread() not in threads
    assert most == 1
