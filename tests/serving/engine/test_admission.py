import asyncio
import itertools
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import head, serving, speak, wait_until
from strokes import npy, png, stroke_images

from app.serving import schemas
from app.serving.engine.admission import Admission, Overloaded

PNG = {"content-type": "image/png"}
NPY = {"content-type": "application/x-npy"}
SMALL = png(stroke_images(1, seed=0)[0])
NOISE = png(np.random.RandomState(0).randint(0, 256, (2600, 2600)).astype(np.uint8))  # decoded for a fifth of a second


def admission(max_waiting=3):
    return Admission(max_waiting)


def refuses(door):
    """Whether one more is refused now; if not, it goes again at once."""
    try:
        with door:
            return False
    except Overloaded:
        return True


@given(st.integers(1, 20), st.lists(st.booleans(), max_size=100))
def test_no_more_than_allowed_are_under_way(limit, steps):
    """Whatever comes and goes, the count is right, never over the limit, and a place that is free is given."""
    door, inside = admission(limit), 0
    for enter in steps:
        if enter and inside < limit:
            door.__enter__()
            inside += 1
        elif enter:
            with pytest.raises(Overloaded):
                door.__enter__()
        elif inside:
            door.__exit__(None, None, None)
            inside -= 1
        assert door.in_flight == inside


def test_a_refusal_takes_no_place():
    """Those who were refused do not count, however many; when one leaves, the next is let in."""
    door = admission(1)
    with door:
        for _ in range(100):
            with pytest.raises(Overloaded):
                door.__enter__()
        assert door.in_flight == 1
    assert not refuses(door)


def test_a_question_that_fails_gives_its_place_back():
    """An error inside leaves no one counted."""
    door = admission(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), door:
            raise ZeroDivisionError
    assert door.in_flight == 0


def test_a_cancelled_question_gives_its_place_back():
    """A client that leaves frees its place."""
    door = admission(1)

    async def leave():
        async def stay():
            with door:
                await asyncio.sleep(60)

        task = asyncio.create_task(stay())
        await asyncio.sleep(0)
        assert door.in_flight == 1
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    assert door.in_flight == 0


def check_refusal(response):
    """A refusal for lack of room: 503, when to come back, and a problem body."""
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
    assert schemas.Problem.model_validate(response.json()).type == "/problems/unavailable"


def test_an_overloaded_server_refuses_some_and_answers_the_others(tiny_store, tmp_path):
    """With room for two at once, many clients get 200 or a 503 that says when to come back; afterwards all are answered."""
    body = png(stroke_images(1, seed=0, size=900)[0])  # decoded on a thread, so that questions overlap
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_MAX_WAITING": "2", "ODDIGIT_DRAIN_S": "0"}
    with (
        serving(tmp_path / "log", **variables) as server,
        httpx.Client(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=24)) as client,
        ThreadPoolExecutor(24) as pool,
    ):
        answers = list(pool.map(lambda _: client.post("/score", content=body, headers=PNG), range(240)))
        statuses = Counter(answer.status_code for answer in answers)
        assert set(statuses) == {200, 503}
        for answer in answers:
            if answer.status_code == 503:
                check_refusal(answer)
            else:
                schemas.ScoreResponse.model_validate(answer.json())
        after = [client.post("/score", content=body, headers=PNG).status_code for _ in range(5)]
        assert after == [200] * 5
        text = client.get("/metrics").text
        assert f'oddigit_refused_total{{reason="unavailable"}} {float(statuses[503])}' in text
        assert "oddigit_in_flight 0.0" in text


@pytest.fixture(scope="module")
def small_server(tiny_store, tmp_path_factory):
    """A server with room for one request."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_MAX_WAITING": "1", "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path_factory.mktemp("small") / "log", **variables) as server:
        yield server


@pytest.fixture
def full_server(small_server):
    """A server whose only place is taken by one request after the other for as long as the test lasts."""
    server, body = small_server, NOISE
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, timeout=60) as client:
        done = threading.Event()

        def occupy():
            with httpx.Client(base_url=server.url, timeout=60) as occupant:
                while not done.is_set():
                    occupant.post("/score", content=body, headers=PNG)

        pool.submit(occupy)
        try:
            wait_until(lambda: "oddigit_in_flight 1.0" in client.get("/metrics").text)
            yield server
        finally:
            done.set()


def refusals(server, asked, count=3):
    """`count` refusals of the same request; between two requests of the occupant one may be answered."""
    found = []
    for _ in range(200):
        answer = speak(server, asked)
        assert answer.status in (100, 200, 503)
        if answer.status == 503:
            found.append(answer)
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} of 200 requests were refused")


CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMALL), SMALL)
SIZED = {"content_type": "image/png", "content_length": len(SMALL)}


@pytest.mark.parametrize(
    "asked",
    [
        head("/score?alpha=0.001", x_request_id="mine", **SIZED) + SMALL,
        head("/embed", connection="close", **SIZED) + SMALL,
        head("/score", **SIZED).replace(b"HTTP/1.1", b"HTTP/1.0") + SMALL,
        head("/score", connection="Upgrade", upgrade="h2c", **SIZED) + SMALL,
        head("/score", content_type="image/png", transfer_encoding="chunked") + CHUNKED,
        head("/score", content_type="image/png", content_length=2**21) + bytes(2**21),
    ],
    ids=["query", "closing", "http-1.0", "upgrade", "chunked", "large"],
)
def test_a_full_server_refuses_every_kind_of_request_alike(full_server, asked):
    """Status, Retry-After, id and problem body, whatever the request looks like."""
    for _, headers, body in refusals(full_server, asked):
        problem = schemas.Problem.model_validate_json(body)
        assert (problem.type, problem.instance) == ("/problems/unavailable", "/embed" if b"/embed" in asked else "/score")
        assert problem.request_id == headers["x-request-id"]
        assert (problem.request_id == "mine") == (b": mine" in asked)
        assert int(headers["retry-after"]) >= 1
        assert headers["content-type"] == "application/problem+json"


def test_a_refused_body_is_not_taken_for_requests(full_server):
    """It is dropped to its end, and the request behind it is answered on the same connection."""
    smuggled = head("/nowhere", "GET") * 50
    asked = head("/score", content_type="image/png", content_length=len(smuggled)) + smuggled + head("/livez", "GET")
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", full_server.port), timeout=60) as line, line.makefile("rb") as answers:
            for piece in (asked[:100], asked[100:1500], asked[1500:]):
                line.sendall(piece)
            assert read(answers) in (400, 503)
            assert read(answers) == 200


def read(answers):
    """The status of the next answer on a connection."""
    status, length = int(answers.readline().split()[1]), 0
    while (line := answers.readline()) != b"\r\n":
        name, _, value = line.partition(b":")
        length = int(value) if name.lower() == b"content-length" else length
    answers.read(length)
    return status


def test_refusals_are_counted_and_logged(full_server):
    """In the metrics by route and by reason, and in the access log."""

    def counts():
        samples = [line.rpartition(" ") for line in httpx.get(f"{full_server.url}/metrics", timeout=60).text.splitlines()]
        return Counter({name: float(value) for name, _, value in samples if "503" in name or '"unavailable"' in name})

    before = counts()
    refused = refusals(full_server, head("/embed", **SIZED) + SMALL)
    new = counts() - before  # the request that takes the place may be refused once too
    assert new['oddigit_requests_total{route="/embed",status="503"}'] == len(refused) == 3
    assert new['oddigit_refused_total{reason="unavailable"}'] == new.total() / 2
    for answer in refused:
        assert '"POST /embed" 503' in full_server.told(answer.headers["x-request-id"])


def test_probes_and_metrics_are_answered_whatever_is_refused(tiny_store, tmp_path):
    """A full server is alive, ready and measurable."""
    body = png(stroke_images(1, seed=0, size=900)[0])
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_MAX_WAITING": "1", "ODDIGIT_DRAIN_S": "0"}
    done = threading.Event()
    with (
        serving(tmp_path / "log", **variables) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def press():
            statuses = set()
            while not done.is_set():
                statuses.add(client.post("/score", content=body, headers=PNG).status_code)
            return statuses

        pressing = [pool.submit(press) for _ in range(8)]
        try:
            probes = [client.get(path).status_code for path in ("/livez", "/readyz", "/metrics", "/drift") * 10]
        finally:
            done.set()
        assert probes == [200] * 40
        assert set().union(*(press.result() for press in pressing)) == {200, 503}


def test_large_arrays_have_a_door_of_their_own(tiny_store, tmp_path):
    """Bodies over max_body_bytes are few at once; images are answered beside them."""
    large, small = npy(stroke_images(4000, seed=0)), png(stroke_images(1, seed=0)[0])
    variables = {
        "ODDIGIT_STORE": str(tiny_store),
        "ODDIGIT_MAX_ARRAYS": "1",
        "ODDIGIT_MAX_BODY_BYTES": "100000",
        "ODDIGIT_DRAIN_S": "0",
    }
    with (
        serving(tmp_path / "log", **variables) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
        ThreadPoolExecutor(12) as pool,
    ):
        asked = [pool.submit(client.post, "/score", content=large, headers=NPY) for _ in range(40)]
        beside = [client.post("/score", content=small, headers=PNG).status_code for _ in range(20)]
        answers = [one.result() for one in asked]
    assert beside == [200] * 20
    assert {answer.status_code for answer in answers} == {200, 503}
    for answer in itertools.islice((answer for answer in answers if answer.status_code == 503), 5):
        check_refusal(answer)


def test_a_deadline_that_passes_is_told_as_such(tiny_store, tmp_path):
    """Where no answer can come in time, the status is 504 and the body says which time it was."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DEADLINE_MS": "0.001", "ODDIGIT_DRAIN_S": "0"}
    body = png(stroke_images(1, seed=0, size=900)[0])
    with serving(tmp_path / "log", **variables) as server, httpx.Client(base_url=server.url, timeout=60) as client:
        answers = [client.post("/score", content=body, headers=PNG) for _ in range(10)]
    assert {answer.status_code for answer in answers} <= {504, 503}
    assert answers[0].status_code == 504
    assert "0.001 ms" in answers[0].json()["detail"]
