"""Bounds on each connection: header fields, trailers, connections that send nothing, and objects that stay behind."""

import gc
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import weakref
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
import pytest
import uvicorn
from live import head, wait_until
from PIL import Image
from strokes import encoded, png, stroke_images
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.main import create_app
from app.serving.http.body import ByteRate
from app.serving.http.connections import ConnectionLimits
from app.serving.http.protocol import LimitedProtocol
from app.serving.settings import read_settings

PNG = "image/png"
SMALL = png(stroke_images(1, seed=0)[0])
PHOTO = encoded(Image.fromarray(stroke_images(1, seed=0, size=300)[0]), "JPEG")
NPY, JSON, FORM = "application/x-npy", "application/json", "multipart/form-data; boundary=b"
ARRAY = io.BytesIO()
np.save(ARRAY, stroke_images(3, seed=0))
FILE = b'--b\r\ncontent-disposition: form-data; name="f"; filename="f.png"\r\n\r\n%b\r\n' % SMALL
TENSOR = {"name": "images", "datatype": "UINT8", "shape": [1, 784], "data": [0] * 784}


class RecordedRate(ByteRate):
    """Records the sizes that are counted, and lets the connection wait for a moment."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def delay(self, size):
        self.sizes.append(size)
        return 1e-3


@contextmanager
def server_in_this_process(store, rate=None, **variables):
    """The port of a server that runs on a thread of the test's process."""
    rate = rate or ByteRate(rate=8 * 2**20, burst=2**16)
    variables = {"ODDIGIT_STORE": str(store), "ODDIGIT_RELOAD": "false", "ODDIGIT_ACCESS_LOG": "false", **variables}
    limits = ConnectionLimits(max_connections=40, head_timeout_s=60, rate=rate)
    http = partial(LimitedProtocol, limits=limits)
    config = uvicorn.Config(create_app(read_settings(variables)), http=http, ws="none", log_config=None, access_log=False)
    server = uvicorn.Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive() and time.monotonic() < until
            time.sleep(0.05)
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)
            gc.unfreeze()  # the server froze the heap of this process


@pytest.fixture(scope="module")
def port(tiny_store):
    with server_in_this_process(tiny_store, ODDIGIT_API_KEYS="test:" + 40 * "k") as port:
        yield port


def talk(port, data, *, wait=True):
    """All bytes that come back for `data`; with wait=False the client leaves at once. A refused client may be reset."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line, suppress(ConnectionError):
        line.sendall(data)
        while wait and (piece := line.recv(65536)):
            answer += piece
    return answer


def ask(path, body=b"", method="POST", content_type=PNG, **headers):
    fields = {"connection": "close", "x_api_key": 40 * "k", "content_type": content_type, "content_length": len(body)}
    return head(path, method, **{**fields, **headers}) + body


CHUNKED = head("/score", "POST", content_type=PNG, transfer_encoding="chunked", x_api_key=40 * "k", connection="close")


def test_a_request_with_more_than_a_hundred_fields_is_refused(port):
    """One hundred are read, one more is a 413, in one packet of any size."""
    fields = {f"x_{number}": "1" for number in range(101)}
    assert talk(port, ask("/livez", method="GET", **dict(list(fields.items())[:90])))[:12] == b"HTTP/1.1 200"
    assert talk(port, ask("/livez", method="GET", **fields))[:12] == b"HTTP/1.1 413"
    assert talk(port, b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 40_000 + b"\r\n")[:12] in (b"HTTP/1.1 413", b"")


def test_what_follows_a_body_that_was_dropped_at_a_rate_is_answered(port):
    """The connection is not read for a while, and then goes on."""
    answer = talk(port, ask("/score", bytes(2**20), x_api_key="wrong", connection="keep-alive") + ask("/livez", method="GET"))
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"401", b"200"]


def test_large_bodies_are_received_at_a_rate(tiny_store):
    """All connections together; 64 KiB of each are not counted."""
    rate = RecordedRate()
    with server_in_this_process(tiny_store, rate=rate) as port:
        assert talk(port, ask("/score", bytes(60_000)))[9:12] == b"400"
        assert rate.sizes == []
        assert talk(port, ask("/score", bytes(2**20)))[9:12] == b"400"
    assert 2**20 - 2**18 < sum(rate.sizes) <= 2**20


def test_large_heads_over_one_connection_are_received_at_a_rate(tiny_store):
    """One of 30 KB takes as much of the event loop's time as a hundred small ones. The first is not counted."""
    rate = RecordedRate()
    with server_in_this_process(tiny_store, rate=rate) as port, socket.create_connection(("127.0.0.1", port)) as line:
        for cookie in (20_000, 20_000, 1000):
            assert asked(line, head("/livez", "GET", cookie="x" * cookie)) == 200
    assert len(rate.sizes) == 1 and rate.sizes[0] > 100_000


def test_a_chunked_body_is_dropped_at_a_rate_too(tiny_store):
    """What was read at once counts once, however many chunks it had."""
    rate = RecordedRate()
    chunks = b"".join(b"400\r\n%b\r\n" % bytes(1024) for _ in range(1024)) + b"0\r\n\r\n"
    with server_in_this_process(tiny_store, ODDIGIT_API_KEYS="test:" + 40 * "k", rate=rate) as port:
        request = head("/score", content_type=PNG, transfer_encoding="chunked", x_api_key="wrong") + chunks
        answer = talk(port, request + ask("/livez", method="GET"))
    assert re.findall(rb"HTTP/1.1 (\d+)", answer)[0] == b"401"
    assert sum(rate.sizes) > 2**19 and len(rate.sizes) < 200


@pytest.fixture
def cycles(monkeypatch):
    """uvicorn's objects of all requests from now on, as long as something refers to them.

    gc.get_objects() would also find them, but it finds tuples that other threads are building, which makes their threads fail.
    """
    made, init = weakref.WeakSet(), RequestResponseCycle.__init__

    def recorded(self, *arguments, **options):
        made.add(self)
        init(self, *arguments, **options)

    monkeypatch.setattr(RequestResponseCycle, "__init__", recorded)
    return made


def test_requests_that_come_at_once_are_parsed_a_few_at_a_time(port, cycles):
    """All are answered. As long as nobody reads the answers, most of the requests are bytes."""
    count = 300
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(
            ask("/openapi.json", method="GET", connection="keep-alive") * (count - 1) + ask("/openapi.json", method="GET")
        )
        answer = line.recv(65536)
        parsed = len(cycles)
        while piece := line.recv(2**20):
            answer += piece
    assert answer.count(b"HTTP/1.1 200 OK") == count
    assert 0 < parsed < 50


def test_trailers_are_dropped(port):
    """They become no headers of the request, and of the next one on the connection."""
    body = b"%x\r\n%b\r\n0\r\nhost: other\r\nx-request-id: trailer\r\n\r\n" % (len(SMALL), SMALL)
    answer = talk(port, CHUNKED + body)
    assert answer[:12] == b"HTTP/1.1 200"
    assert b"x-request-id: trailer" not in answer


def test_a_trailer_that_closes_the_connection_closes_it(port):
    """The parser takes no request after it; the client must not wait for an answer to one."""
    body = b"%x\r\n%b\r\n0\r\nconnection: close\r\n\r\n" % (len(SMALL), SMALL)
    with socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.sendall(CHUNKED.replace(b"connection: close\r\n", b"") + body)
        answer = b""
        while piece := line.recv(65536):
            answer += piece
    assert answer[:12] == b"HTTP/1.1 200"


def test_more_than_a_hundred_trailers_are_refused(port):
    """As header fields are."""
    body = b"%x\r\n" % len(SMALL) + SMALL + b"\r\n0\r\n"
    statuses = [talk(port, CHUNKED + body + b"a: b\r\n" * count + b"\r\n")[9:12] for count in (100, 101)]
    assert statuses == [b"200", b"413"]


def test_trailers_without_end_are_refused(port):
    """A large body earns no allowance for what follows it."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(CHUNKED + b"%x\r\n" % 200_000 + bytes(200_000) + b"\r\n0\r\n")
        line.settimeout(0.01)
        sent, answer = 0, b""
        while sent < 4 << 20:
            try:
                sent += line.send(b"a:\r\n" * 1000)
                answer += line.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                break
            else:
                break
    assert sent < 1 << 20


def test_connections_that_send_nothing_make_room_for_new_ones(port):
    """With all places taken by silent clients, a client that asks is answered after a second at most."""
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
    try:
        until = time.monotonic() + 20
        for request in (ask("/livez", method="GET"), ask("/score", SMALL)):
            while talk(port, request)[:12] != b"HTTP/1.1 200":
                assert time.monotonic() < until
                time.sleep(0.1)
    finally:
        for line in silent:
            line.close()


def test_the_connection_that_waited_longest_makes_room(port):
    """One that has just been answered stays, although it is the oldest."""
    request = ask("/livez", method="GET", connection="keep-alive")
    with ExitStack() as stack:
        oldest, *silent = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30)) for _ in range(40)]
        time.sleep(0.7)
        assert asked(oldest, request) == 200
        time.sleep(0.7)
        newest = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
        assert asked(newest, request) == 200
        assert silent[0].recv(1) == b""
        assert asked(oldest, request) == 200 and all(asked(line, request) == 200 for line in silent[1:])


def test_bodies_that_stop_arriving_make_room_for_new_connections(port):
    """With all places taken by clients that stop in the middle of a body, another client is answered soon."""
    begun = ask("/score", bytes(1000))[:-500]
    with ExitStack() as stack:
        for _ in range(60):
            line = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            with suppress(OSError):  # one beyond the maximum may be refused
                line.sendall(begun)
        until = time.monotonic() + 15
        while talk(port, ask("/score", SMALL))[:12] != b"HTTP/1.1 200":
            assert time.monotonic() < until
            time.sleep(0.1)


def asked(line, request):
    """The status of the response to a request over a connection that stays open."""
    line.sendall(request)
    answer = http.client.HTTPResponse(line)
    answer.begin()
    answer.read()
    return answer.status


def test_a_connection_that_waits_keeps_nothing_of_its_last_request(port, cycles):
    """4,000 such connections would keep 12 MB."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        assert asked(line, ask("/livez", method="GET", connection="keep-alive")) == 200
        until = time.monotonic() + 3  # the server closes such a connection after 5 s
        while len(cycles):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_connection_that_is_reset_keeps_nothing(port, monkeypatch):
    """Each would keep 6 KB until uvicorn's timer for idle connections ends, after up to 75 s: hundreds of MiB in that time."""
    made, init = weakref.WeakSet(), LimitedProtocol.__init__

    def recorded(self, *arguments, **options):
        made.add(self)
        init(self, *arguments, **options)

    monkeypatch.setattr(LimitedProtocol, "__init__", recorded)
    line = socket.create_connection(("127.0.0.1", port), timeout=30)
    assert asked(line, ask("/livez", method="GET", connection="keep-alive")) == 200
    assert len(made) == 1
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    line.close()
    wait_until(lambda: not made, patience=3)  # here, the timer takes 5 s


def test_small_responses_are_written_at_once_where_nothing_has_to_wait(port, monkeypatch):
    """Not by uvicorn's `send`; a response of the framework, and one after which the connection closes, are."""
    sent, send = [], RequestResponseCycle.send

    async def recorded(self, message):
        sent.append(message["type"])
        await send(self, message)

    monkeypatch.setattr(RequestResponseCycle, "send", recorded)
    by_uvicorn = ["http.response.start", "http.response.body"]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        for request, status, expected in (
            (ask("/score", SMALL, connection="keep-alive"), 200, []),
            (ask("/reconstruct", SMALL, connection="keep-alive"), 200, []),
            (ask("/score", b"no image", connection="keep-alive"), 400, []),
            (ask("/score", SMALL, connection="keep-alive", content_encoding="gzip"), 415, []),
            (ask("/livez", method="GET", connection="keep-alive"), 200, by_uvicorn),
            (ask("/score", SMALL, connection="keep-alive"), 200, []),
        ):
            sent.clear()
            assert asked(line, request) == status
            assert sent == expected
    assert talk(port, ask("/score", SMALL)).startswith(b"HTTP/1.1 200")
    assert sent == by_uvicorn


REQUESTS = {
    "image": ask("/score", SMALL),
    "photograph": ask("/score", PHOTO, content_type="image/jpeg"),
    "pictures": ask("/reconstruct", SMALL),
    "undecodable": ask("/score", b"no image"),
    "wrong key": ask("/score", SMALL, x_api_key="wrong"),
    "not found": ask("/nothing", method="GET"),
    "not http": b"GE\x00T / HTTP/1.1\r\n\r\n",
    "decode": ask("/decode", b'{"embedding": [[0, 0]]}', content_type=JSON),
    "upgrade": ask("/score", SMALL, connection="Upgrade", upgrade="h2c"),
    "array": ask("/score", ARRAY.getvalue(), content_type=NPY),
    "not an array": ask("/score", b"no array", content_type=NPY),
    "form": ask("/score", 2 * FILE + b"--b--\r\n", content_type=FORM),
    "not a form": ask("/score", b"no form", content_type=FORM),
    "query": ask("/score?alpha=x", SMALL),
    "invalid points": ask("/decode", b'{"embedding": [[0, 0], []]}', content_type=JSON),
    "no json": ask("/decode", b"{", content_type=JSON),
    "tensor": ask("/v2/models/mnist/infer", json.dumps({"inputs": [TENSOR]}).encode(), content_type=JSON),
    "no tensor": ask("/v2/models/mnist/infer", b'{"inputs": []}', content_type=JSON),
    "model": ask("/model", method="GET"),
    "latent": ask("/latent", method="GET"),
    "head": ask("/readyz", method="HEAD"),
    "metrics": ask("/metrics", method="GET"),
    "openapi": ask("/openapi.json", method="GET"),
    "page": ask("/", method="GET"),
    "too many fields": ask("/livez", method="GET", **{f"x_{number}": "1" for number in range(101)}),
}
ABANDONED = {
    "half a body": ask("/score", SMALL)[:-20],
    "half a head": b"POST /score HTTP/1.1\r\nhost: a\r\n",
    "wrong key with trailers": CHUNKED.replace(40 * b"k", b"wrong") + b"5\r\nabcde\r\n0\r\na: b\r\n",
    "pipelined": 3 * ask("/score", SMALL, connection="keep-alive"),
}


@pytest.mark.parametrize(("data", "wait"), [(d, True) for d in REQUESTS.values()] + [(d, False) for d in ABANDONED.values()])
def test_requests_leave_no_reference_cycles(port, data, wait):
    """With the garbage collector off, everything that requests and their connections allocated is freed."""
    wait = wait and b"upgrade: h2c" not in data
    assert objects_in_cycles(partial(talk, port, data, wait=wait), times=50) < 50


def objects_in_cycles(action, times):
    """How many objects only the garbage collector frees after `action` was done so many times."""
    for _ in range(3):
        action()
    time.sleep(0.1)
    gc.collect()
    gc.freeze()  # the last collection looks at new objects alone
    gc.disable()
    try:
        for _ in range(times):
            action()
        time.sleep(0.2)
        return gc.collect()
    finally:
        gc.enable()


def test_a_request_that_is_answered_before_its_body_keeps_nothing_of_its_head(port):
    """It may wait for the rest of the body for a minute, with a head of 45 KB."""
    field = (b"x-long", b"y" * 300)
    message = ask("/score", bytes(1000), connection="keep-alive", x_api_key="wrong", x_long="y" * 300)

    def is_kept():
        lists = [found for found in gc.get_objects() if type(found) is list and found and type(found[-1]) is tuple]
        return any(found[-1][:1] == field[:1] for found in lists)  # it is the last field

    with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
        line.sendall(message[:-500])
        assert line.recv(65536).startswith(b"HTTP/1.1 401")
        wait_until(lambda: not is_kept())
        line.sendall(message[-500:] + message)  # the connection is still open
        assert line.recv(65536).startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize("path", ["/score", "/reconstruct"])
def test_requests_over_connections_that_stay_open_leave_no_reference_cycles(port, path):
    """Neither the requests nor, once the client has left, the connections."""

    def ask_twice_and_leave():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            assert [asked(line, ask(path, SMALL, connection="keep-alive")) for _ in range(2)] == [200, 200]

    assert objects_in_cycles(ask_twice_and_leave, times=50) < 50
