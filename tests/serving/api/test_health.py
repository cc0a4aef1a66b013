import asyncio
import threading
import time
from types import SimpleNamespace

import pytest

from app.detection import store
from app.serving.api.health import HealthEndpoints
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


class CountedText:
    """In the place of the metrics: counts the events that were recorded when the text is written, which takes 10 ms."""

    def __init__(self):
        self.events = self.written = 0
        self.threads, self.at_once, self.most = set(), 0, 0

    def flush(self):
        pass

    def set_in_flight(self, requests):
        pass

    def text(self):
        self.threads.add(threading.current_thread())
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        events = self.events
        time.sleep(0.01)
        self.at_once -= 1
        self.written += 1
        return str(events).encode()


@pytest.fixture
def counted():
    return CountedText()


@pytest.fixture
def endpoints(counted):
    return HealthEndpoints([], None, SimpleNamespace(in_flight=0), counted)


def test_metrics_are_written_beside_the_event_loop_and_one_at_a_time(counted, endpoints):
    """Scrapes that begin while another is written occupy no thread of their own, and never the event loop's."""

    async def scrape_staggered():
        scrapes = []
        for _ in range(5):
            scrapes.append(asyncio.create_task(endpoints.metrics()))
            await asyncio.sleep(0.02)
        await asyncio.gather(*scrapes)

    asyncio.run(scrape_staggered())
    assert counted.written > 1
    assert threading.current_thread() not in counted.threads
    assert counted.most == 1


def test_scrapes_that_wait_share_a_text_with_all_that_was_recorded_before_them(counted, endpoints):
    """However many clients ask, a text is written at most once in five times the duration of one."""

    async def scrape_often(seconds):
        async def client():
            while time.monotonic() < until:
                counted.events += 1
                recorded = counted.events
                assert int((await endpoints.metrics()).body) >= recorded

        until = time.monotonic() + seconds
        await asyncio.gather(*(client() for _ in range(20)))

    asyncio.run(scrape_often(0.5))
    assert 2 <= counted.written <= 0.5 / 0.05 + 2


def test_a_client_that_leaves_takes_the_text_from_nobody(counted, endpoints):
    async def leave():
        leaving, staying = (asyncio.create_task(endpoints.metrics()) for _ in range(2))
        await asyncio.sleep(0)
        leaving.cancel()
        return (await staying).body

    assert asyncio.run(leave()) == b"0"
