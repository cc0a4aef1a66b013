import itertools
import json
import select
import socket
import time
from contextlib import ExitStack, contextmanager, suppress

import httpx
import numpy as np
import pytest
from live import ROOT, SERVE, head, serving, speak, wait_until
from strokes import npy, png, stroke_images

from app.serving import schemas
from app.serving.errors import MEDIA_TYPE

PNG, NPY = "image/png", "application/x-npy"
GOOD = png(stroke_images(1, seed=0)[0])
NEXT = head("/livez", "GET")
UPGRADE = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABkAAQAAP__"}


@pytest.fixture(scope="module")
def impatient_server(tiny_store, tmp_path_factory):
    """A server with short timeouts for heads and for clients that do not read, and a limit of twelve connections."""
    variables = {
        "ODDIGIT_STORE": str(tiny_store),
        "ODDIGIT_HEAD_TIMEOUT_S": "0.3",
        "ODDIGIT_MAX_CONNECTIONS": "12",
        "ODDIGIT_ANSWER_TIMEOUT_S": "0.5",
        "ODDIGIT_KEEP_ALIVE_S": "0.5",
        "ODDIGIT_MAX_IMAGES": "200",
        "ODDIGIT_MAX_BODIES_BYTES": str(4 * 2**20),
        "ODDIGIT_DRAIN_S": "0",
        "ODDIGIT_DEADLINE_MS": "60000",  # a form of 200 photographs takes seconds on a busy machine
    }
    with serving(tmp_path_factory.mktemp("impatient") / "log", **variables) as running:
        yield running


@pytest.mark.parametrize("file", ["seven.png", "two.jpg"])  # decoded in the event loop and in a process
def test_a_client_that_only_ends_its_sending_is_answered(server, samples, file):
    """All complete requests, then the connection is closed; an incomplete one is not waited for."""
    data = GOOD if file == "seven.png" else (samples / file).read_bytes()
    asked = head(content_type=PNG, content_length=len(data)) + data
    for request, count in ((asked, 1), (asked * 3, 3), (NEXT + asked, 2), (asked + asked[:-1], 1), (asked[:-1], 0)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as line:
            line.sendall(request)
            line.shutdown(socket.SHUT_WR)
            text = b""
            while piece := line.recv(65536):
                text += piece
        assert statuses(text) == [200] * count, (count, text)


@contextmanager
def connected(server, patience=20):
    with socket.create_connection(("127.0.0.1", server.port), timeout=patience) as line:
        yield line


def received(line, answers):
    """All bytes up to the end of so many answers, or of the connection."""
    text = b""
    while text.count(b"HTTP/1.1 ") < answers or not text.rstrip().endswith(b"}"):
        piece = line.recv(65536)
        if not piece:
            break
        text += piece
    return text


def statuses(text):
    return [int(part[:3]) for part in text.split(b"HTTP/1.1 ")[1:]]


def asked(server, data, answers):
    """The statuses of so many answers to these bytes, sent at once."""
    with connected(server) as line:
        line.sendall(data)
        return statuses(received(line, answers))


def closes(line, within=10):
    """Whether the server closes the connection by itself."""
    line.settimeout(within)
    try:
        return line.recv(65536) == b""
    except ConnectionResetError:
        return True


@pytest.mark.parametrize(
    ("start", "status"),
    [(b"", None), (b"G", 408), (b"GET /livez HTTP/1.1\r\n", 408), (b"GET /livez HTTP/1.1\r\nhost: a\r\nx-a: b", 408)],
)
def test_a_head_that_does_not_come_is_not_waited_for(impatient_server, start, status):
    """Half of a head is answered with 408 when the time for a head is over; a silent connection is only closed."""
    with connected(impatient_server) as line:
        line.sendall(start)
        text = received(line, 9)
    assert statuses(text) == ([] if status is None else [status])


def test_a_head_that_trickles_is_cut_off(impatient_server):
    """The time is that of the whole head: a byte now and then does not extend it."""
    with connected(impatient_server) as line:
        for byte in itertools.islice(itertools.cycle(b"GET /livez HTTP/1.1\r\nx-a: aaaaaaaaaa"), 100):
            if select.select([line], [], [], 0.05)[0]:  # before a byte is sent: one that meets a closed connection resets it
                break
            line.sendall(bytes([byte]))
        assert statuses(received(line, 9)) == [408]


def test_the_second_head_of_a_connection_has_a_time_too(impatient_server):
    """A connection that was good once is no excuse."""
    with connected(impatient_server) as line:
        line.sendall(NEXT)
        assert statuses(received(line, 1)) == [200]
        line.sendall(b"GET /livez HT")
        assert statuses(received(line, 9)) == [408]


def test_a_body_may_take_longer_than_a_head(impatient_server):
    """The time for a head ends with it; the body has its own."""
    with connected(impatient_server) as line:
        line.sendall(head(content_type=PNG, content_length=len(GOOD)) + GOOD[:50])
        time.sleep(0.6)
        line.sendall(GOOD[50:])
        assert statuses(received(line, 1)) == [200]


def test_a_question_may_come_in_any_pieces(server):
    """Byte by byte, head and body: answered as in one piece."""
    data = head(content_type=PNG, content_length=len(GOOD)) + GOOD
    with connected(server) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for index in range(len(data)):
            line.sendall(data[index : index + 1])
        assert statuses(received(line, 1)) == [200]


def endless(start, line):
    """Send `line` after `start` until the server has had enough -> what it took, what it answered."""

    def lines():
        for _ in range(4000):
            yield line

    return lambda server: speak(server, start, lines(), patience=20)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(endless(head()[:-2], b"x-a: " + b"b" * 1000 + b"\r\n"), id="headers"),
        pytest.param(endless(head()[:-2] + b"x-a: ", b"b" * 1000), id="one-header"),
        pytest.param(endless(b"GET /", b"a" * 1000), id="path"),
        pytest.param(endless(b"", b"A" * 1000), id="method"),
        pytest.param(
            endless(head(content_type=PNG, transfer_encoding="chunked") + b"0\r\n", b"x-a: " + b"b" * 1000 + b"\r\n"),
            id="trailers",
        ),
        pytest.param(endless(head(content_type=PNG, transfer_encoding="chunked") + b"1;a=", b"b" * 1000), id="chunk-extension"),
    ],
)
def test_what_never_ends_is_refused(server, client, send):
    """Headers, a path, trailers or the extension of a chunk: a refusal or a closed connection long before 4 MB."""
    answer = send(server)
    assert answer.status in (0, 400, 408, 413, 414, 431)
    if answer.status:
        assert answer.headers["connection"] == "close"
        schemas.Problem.model_validate_json(answer.body)
    assert client.get("/livez").status_code == 200


def test_a_large_head_within_the_limit_is_served(server):
    """Cookies and tokens of 32 kB are no attack."""
    lines = {f"x_a{index}": "b" * 1000 for index in range(32)}
    assert speak(server, head("/livez", "GET", **lines)).status == 200


def test_large_bodies_in_small_chunks_are_no_overhead(server):
    """An image sent in chunks of a byte, whose framing is five times its size, is read."""
    data = b"".join(b"1\r\n%c\r\n" % byte for byte in GOOD) + b"0\r\n\r\n"
    assert speak(server, head(content_type=PNG, transfer_encoding="chunked"), data).status == 200


def test_a_connection_serves_any_number_of_questions(server):
    """What one request was long does not count for the next: 500 of them on one connection, a megabyte in all."""
    one = head("/livez", "GET", x_a="b" * 2000)
    with connected(server) as line:
        for _ in range(10):
            line.sendall(one * 50)
            assert statuses(received(line, 50)) == [200] * 50


def test_too_many_connections_are_refused_with_when_to_come_back(impatient_server):
    """The one over the limit is told so at once, probes are answered; when the others have gone, there is room again."""

    def refused():
        """The first of 12 connections may be closed after 0.25 s, to make room: then the answer is 200."""
        with ExitStack() as stack:
            for _ in range(12):
                stack.enter_context(connected(impatient_server))
            answer = speak(impatient_server, head("/model", "GET"))
            assert speak(impatient_server, NEXT).status == 200
        wait_until(lambda: speak(impatient_server, head("/model", "GET")).status == 200)
        return answer if answer.status != 200 else None

    answer = wait_until(refused)
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["connection"] == "close"
    assert schemas.Problem.model_validate_json(answer.body).type == "/problems/unavailable"


@pytest.mark.parametrize("pieces", ["one", "many"])
@pytest.mark.parametrize("following", [b"", NEXT, head(content_type=PNG, content_length=len(GOOD)) + GOOD])
def test_an_upgrade_that_is_offered_with_a_body_changes_nothing(server, following, pieces):
    """As some clients send it with every first request: the body is read, and so is the next request behind it."""
    data = head(content_type=PNG, content_length=len(GOOD), **UPGRADE) + GOOD + following
    size = len(data) if pieces == "one" else 11
    with connected(server) as line:
        for start in range(0, len(data), size):
            line.sendall(data[start : start + size])
        text = received(line, 2 if following else 1)
    assert statuses(text) == [200] * (2 if following else 1)
    assert b'"score"' in text
    assert b"upgrade:" not in text.lower()


@pytest.mark.parametrize("following", [b"", NEXT])
def test_an_upgrade_that_is_offered_with_a_chunked_body_changes_nothing(server, following):
    """The same where the length of the body is not known beforehand."""
    body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    data = head(content_type=PNG, transfer_encoding="chunked", **UPGRADE) + body + following
    assert asked(server, data, 2 if following else 1) == [200] * (2 if following else 1)


def test_an_upgrade_that_is_offered_without_a_body_changes_nothing(server):
    """A GET with an offer, and another behind it."""
    assert asked(server, head("/livez", "GET", **UPGRADE) + NEXT, 2) == [200, 200]


def test_an_upgrade_with_an_overlong_body_is_refused_like_any(server):
    """The limits hold for a body that comes with an offer."""
    answer = speak(server, head(content_type=PNG, content_length=2 * 2**30, **UPGRADE), itertools.repeat(bytes(2**16), 500))
    assert answer.status == 413


@pytest.mark.parametrize(
    "noise",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"hello\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00" * 64],
)
def test_what_is_not_http_gets_a_problem(server, noise):
    """Its body is the contract's, its connection closes."""
    answer = speak(server, noise)
    assert answer.status == 400
    assert answer.headers["content-type"] == MEDIA_TYPE
    assert answer.headers["connection"] == "close"
    problem = schemas.Problem.model_validate(json.loads(answer.body))
    assert problem.status == 400
    assert "HTTP" in problem.detail


@pytest.mark.parametrize("line", [b"GET http://host HTTP/1.1", b"GET http://h?x=1 HTTP/1.1", b"CONNECT host:443 HTTP/1.1"])
def test_a_target_that_is_no_path_gets_a_problem(server, line):
    """The parser accepts it and its URL parser does not. The two good requests before it are answered."""
    bad = line + b"\r\nHost: a\r\n\r\n"
    assert speak(server, bad).status == 400
    good = head(content_type=PNG, content_length=len(GOOD)) + GOOD
    assert asked(server, good + good + bad, 3)[:2] == [200, 200]


def test_a_good_question_is_answered_though_noise_follows_it(server):
    """What was asked properly gets its own answer first; the refusal belongs to what came behind."""
    good = head(content_type=PNG, content_length=len(GOOD)) + GOOD
    assert asked(server, good + b"\x00\xff no request\r\n\r\n", 2)[:1] == [200]


def test_five_hundred_slow_clients_disturb_nobody(slow_client_server):
    """Connections that trickle heads and bodies: others are answered meanwhile, and the slow ones get 408 in the end."""
    asking = head(content_type=PNG, content_length=len(GOOD))
    texts = (b"GET /livez HTTP/1.1\r\nhost: slow\r\n", GOOD)
    with ExitStack() as stack, httpx.Client(base_url=slow_client_server.url, timeout=20) as client:
        lines = [stack.enter_context(connected(slow_client_server, 30)) for _ in range(500)]
        for line in lines[1::2]:
            line.sendall(asking)
        for step in range(5):
            for number, line in enumerate(lines):
                line.sendall(texts[number % 2][step : step + 1])
            answers = [client.post("/score", content=GOOD, headers={"content-type": PNG}) for _ in range(5)]
            assert {answer.status_code for answer in answers} == {200}
        assert {statuses(line.recv(65536))[0] for line in lines} == {408}


@pytest.fixture
def slow_client_server(tiny_store, tmp_path):
    """A server that waits six seconds for heads and bodies."""
    timeouts = {"ODDIGIT_HEAD_TIMEOUT_S": "6", "ODDIGIT_BODY_TIMEOUT_S": "6", "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path / "log", ODDIGIT_STORE=str(tiny_store), **timeouts) as running:
        yield running


def test_connections_beyond_the_open_files_are_refused(tiny_store, tmp_path):
    """Where the system allows fewer open files than connections, the last ones are refused, and the log says why."""
    fewer = ("sh", "-c", 'ulimit -n 200; exec "$0" "$@"', *SERVE)
    with (
        serving(tmp_path / "log", "--store", str(tiny_store), command=fewer, ODDIGIT_DRAIN_S="0") as server,
        ExitStack() as stack,
    ):
        lines = [stack.enter_context(connected(server)) for _ in range(90)]
        assert statuses(received(lines[-1], 1)) == [503]
        lines[0].sendall(NEXT)
        assert statuses(received(lines[0], 1)) == [200]
        assert "200 open files" in server.told("open files")


def test_slow_connections_do_not_take_the_places_of_others_for_long(impatient_server):
    """When all places are held by clients that say nothing, they are free again after the time for a head."""
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(connected(impatient_server))
        wait_until(lambda: speak(impatient_server, NEXT).status == 200)


def test_the_server_does_not_say_what_it_is_made_of(client):
    """No banner with names and versions, on good answers and on bad ones."""
    for response in (client.get("/livez"), client.get("/nowhere"), client.post("/score")):
        assert "server" not in response.headers
        assert not any(word in str(response.headers).lower() for word in ("uvicorn", "starlette", "python"))


def test_a_client_that_waits_for_leave_is_given_it(server):
    """Expect: 100-continue is answered before the body is sent, as curl wants it for large ones."""
    with connected(server) as line:
        line.sendall(head(content_type=PNG, content_length=len(GOOD), expect="100-continue"))
        assert line.recv(1000).startswith(b"HTTP/1.1 100")
        line.sendall(GOOD)
        assert statuses(received(line, 1)) == [200]


def test_an_old_client_is_answered_and_closed(server):
    """HTTP/1.0 without a host, as simple probes speak it."""
    answer = speak(server, b"GET /livez HTTP/1.0\r\n\r\n")
    assert answer.status == 200
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/livez", headers={"connection": "close"}).headers["connection"] == "close"


def test_a_client_that_stays_idle_is_disconnected(impatient_server):
    """After ODDIGIT_KEEP_ALIVE_S, here half a second."""
    with connected(impatient_server) as line:
        line.sendall(NEXT)
        assert statuses(received(line, 1)) == [200]
        assert closes(line)


@pytest.mark.parametrize(("version", "connection"), [(b"1.0", "keep-alive"), (b"1.1", "close")])
def test_a_connection_that_is_not_to_stay_ends_with_its_answer(server, version, connection):
    """A client of HTTP/1.0, or one that says so, reads its answer to the end of the connection."""
    asked = head(content_type=PNG, content_length=len(GOOD), connection=connection).replace(b"HTTP/1.1", b"HTTP/" + version)
    with connected(server) as line:
        line.sendall(asked + GOOD)
        text = b"".join(iter(lambda: line.recv(65536), b""))
    assert statuses(text) == [200]
    assert b"\r\nconnection: close\r\n" in text


def test_a_client_that_asks_on_without_reading_fills_no_memory(server):
    """Questions pile up in the network, not in the server; read at last, every answer is there."""
    count, asked_once = 4000, head("/reconstruct", content_type=PNG, content_length=len(GOOD)) + GOOD
    with connected(server, patience=60) as line:
        line.setblocking(False)
        before, data, sent = server.memory, asked_once * count, 0
        until = time.monotonic() + 5
        while sent < len(data) and time.monotonic() < until:
            try:
                sent += line.send(data[sent : sent + 65536])
            except BlockingIOError:
                time.sleep(0.01)
        assert server.memory - before < 50e6
        assert httpx.get(f"{server.url}/livez", timeout=20).status_code == 200
        line.setblocking(True)
        with line.makefile("rb") as answers:
            for _ in range(sent // len(asked_once)):
                assert answers.readline().split()[1] == b"200"
                fields = dict(text.rstrip().split(b": ", 1) for text in iter(answers.readline, b"\r\n"))
                assert json.loads(answers.read(int(fields[b"content-length"])))["results"]


BULKY = npy(np.tile(stroke_images(1000, seed=2), (4, 1, 1)))


def no_reader(server):
    """A connection with a small window that has asked for 12 MB, more than the network holds, and will read none of it."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.connect(("127.0.0.1", server.port))
    line.sendall(head("/reconstruct", content_type=NPY, accept=NPY, content_length=len(BULKY)) + BULKY)
    return line


def read_out(line, pause=0.0):
    """How much there is to read, in small pieces, until the connection ends."""
    total = 0
    with suppress(ConnectionResetError):
        while piece := line.recv(32768):
            total += len(piece)
            time.sleep(pause)
    return total


def test_a_client_that_does_not_read_is_disconnected(impatient_server):
    """A response that nobody reads is dropped with its connection; a client that reads slowly but steadily gets all of it."""
    with no_reader(impatient_server) as still:
        assert select.select([still], [], [], 60)[0]  # the response has begun
        time.sleep(1.5)
        assert read_out(still) < 784 * 4 * 4000
    with no_reader(impatient_server) as slow:
        assert read_out(slow, pause=0.001) > 784 * 4 * 4000


def test_who_does_not_read_does_not_keep_the_server_from_stopping(tiny_store, tmp_path):
    """The process ends with success though a client has not read its answer."""
    with no_reader_at_a_server(tiny_store, tmp_path) as began:
        pass
    assert time.monotonic() - began[0] < 15


@contextmanager
def no_reader_at_a_server(store, folder):
    began = []
    variables = {"ODDIGIT_STORE": str(store), "ODDIGIT_ANSWER_TIMEOUT_S": "1", "ODDIGIT_DRAIN_S": "0"}
    with ExitStack() as stack:
        with serving(folder / "log", **variables) as server:
            stack.enter_context(no_reader(server))
            time.sleep(1)
            began.append(time.monotonic())
        yield began


LEFT_OVERS = {
    "an empty line": (NEXT, b"\r\n"),
    "part of a head": (NEXT, b"GET /li"),
}


@pytest.mark.parametrize(("first", "rest"), LEFT_OVERS.values(), ids=LEFT_OVERS.keys())
def test_no_connection_stays_for_what_does_not_come(impatient_server, first, rest):
    """After an answer too: whatever was sent of the next request, its time is limited."""
    with connected(impatient_server) as line:
        line.sendall(first)
        assert statuses(received(line, 1)) == [200]
        line.sendall(rest)
        assert statuses(received(line, 9)) in ([], [408])


def test_a_client_that_leaves_its_questions_is_no_error_of_the_server(server, client):
    """Two questions at once, and gone: no answer of the server's own failing is counted, and nothing is logged."""
    photo = (ROOT / "tests" / "samples" / "two.jpg").read_bytes()
    first = head("/score", content_type="image/jpeg", content_length=len(photo)) + photo
    for _ in range(5):
        with connected(server) as line:
            line.sendall(first + head("/score", content_type=PNG, content_length=len(GOOD)) + GOOD)
            time.sleep(0.002)
    time.sleep(1)
    assert 'status="500"' not in client.get("/metrics").text


@pytest.mark.parametrize("kind", ["image/jpeg", PNG])
def test_a_broken_request_takes_no_answer_from_those_before_it(server, kind):
    """What was asked well is answered, though broken chunks follow at once; then the connection ends."""
    body = (ROOT / "tests" / "samples" / "two.jpg").read_bytes() if kind == "image/jpeg" else GOOD
    good = head("/score", content_type=kind, content_length=len(body)) + body
    broken = head("/score", content_type=PNG, transfer_encoding="chunked") + b"1\r\na\r\nZZ\r\n"
    with connected(server) as line:
        line.sendall(good + broken)
        text = received(line, 3)
    assert statuses(text) == [200, 400]
    assert b"connection: close" in text.partition(b"HTTP/1.1 400")[2]


@pytest.mark.parametrize("tail", [b"", b"GET /livez HTT", b"GARBAGE\r\n\r\n"], ids=["nothing", "part of a head", "garbage"])
def test_a_long_question_outlasts_the_time_for_the_next_head(impatient_server, tail):
    """The time for a head runs when the server waits for it, not while it answers what came before."""
    photo = (ROOT / "tests" / "samples" / "two.jpg").read_bytes()
    form = httpx.Request("POST", "http://a", files=[("file", (f"{index}.jpg", photo)) for index in range(200)])
    body = form.read()
    began = time.monotonic()
    with connected(impatient_server, patience=60) as line:
        line.sendall(head("/score", content_type=form.headers["content-type"], content_length=len(body)) + body + tail)
        text = received(line, 1)
    assert statuses(text)[0] == 200  # the 400 for the garbage may be in the same packet
    answer, _ = json.JSONDecoder().raw_decode(text.partition(b"\r\n\r\n")[2].decode())
    assert len(answer["results"]) == 200
    assert time.monotonic() - began > 0.5, "the question was too short to tell"


def test_a_request_that_breaks_after_its_answer_gets_no_second(server):
    """Refused by its head, while the rest still comes: what is wrong with that is not told any more."""
    with connected(server) as line:
        line.sendall(head("/score", content_type="text/plain", transfer_encoding="chunked") + b"5\r\nhello\r\n")
        text = received(line, 1)
        line.sendall(b"ZZ\r\n")
        text += received(line, 9)
    assert statuses(text) == [415]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_refused_body_is_read_to_its_end(server, chunked):
    """Larger than any limit: a client that sends all of it reads its response afterwards, and the connection stays good."""
    whole = 64 * 2**20
    length = {"transfer_encoding": "chunked"} if chunked else {"content_length": whole}
    piece = b"100000\r\n" + bytes(2**20) + b"\r\n" if chunked else bytes(2**20)
    with connected(server) as line:
        line.sendall(head("/score", content_type=PNG, **length))
        for _ in range(64):
            line.sendall(piece)
        line.sendall((b"0\r\n\r\n" if chunked else b"") + NEXT)
        assert statuses(received(line, 2)) == [413, 200]


def test_a_body_that_was_announced_too_large_for_dropping_ends_the_connection(impatient_server):
    """Beyond 1 GiB nothing is read any more."""
    answer = speak(impatient_server, head("/score", content_type=PNG, content_length=2**30 + 1))
    assert (answer.status, answer.headers["connection"]) == (413, "close")


def test_an_upgrade_with_a_coding_that_there_is_not_is_refused(server):
    """As without the upgrade: 400, and no trace in the log."""
    assert asked(server, head("/score", transfer_encoding="gzip", **UPGRADE), 1) == [400]


def test_any_number_of_upgrades_is_answered(server):
    """Two thousand offers in one piece are two thousand answers."""
    assert asked(server, head("/livez", "GET", **UPGRADE) * 2000, 2000) == [200] * 2000


def test_large_bodies_have_room_for_so_many(impatient_server):
    """A body beyond the room there is for all is refused while it comes; small ones are not, and the room comes back.

    One that would never have room is refused at once.
    """
    whole, first = 8 * 2**20, 3_000_000
    with connected(impatient_server) as line:
        line.sendall(head("/score", content_type=NPY, content_length=first + 1) + bytes(first))
        for _ in range(20):  # meanwhile all of the first body is read
            answer = httpx.post(f"{impatient_server.url}/score", content=GOOD, headers={"content-type": PNG})
            assert answer.status_code == 200
        with connected(impatient_server) as other:
            other.sendall(head("/score", content_type=NPY, content_length=first) + bytes(first))
            answer = received(other, 1)
            assert statuses(answer) == [503]
            assert b"retry-after: 1" in answer
        line.sendall(bytes(1))
        assert statuses(received(line, 1)) == [400]
    with connected(impatient_server) as line:
        line.sendall(head("/score", content_type=NPY, content_length=whole))
        assert statuses(received(line, 1)) == [413]
    with connected(impatient_server) as line:  # what is dropped takes no room
        line.sendall(head("/livez", "GET", content_length=whole))
        assert statuses(received(line, 1)) == [200]
        line.sendall(bytes(whole - 1))
        assert httpx.post(f"{impatient_server.url}/score", content=BULKY, headers={"content-type": NPY}).status_code == 200
    assert 'oddigit_refused_total{reason="unavailable"}' in httpx.get(f"{impatient_server.url}/metrics").text
    for _ in range(3):
        answer = httpx.post(f"{impatient_server.url}/score", content=BULKY, headers={"content-type": NPY})
        assert answer.status_code == 200
