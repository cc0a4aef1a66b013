import itertools
import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hostile import FORM, NPY, PNG, animation, bomb_png, file_part, form, huge_png, uploads
from live import head, speak
from strokes import npy, png, stroke_images

from app.serving import schemas
from app.serving.errors import MEDIA_TYPE, PROBLEMS

QUESTIONS = ("/score", "/embed", "/reconstruct")
UPLOADS = uploads()
CHUNK = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"


def check_problem(response, status, path="/score"):
    """The answer is a problem body of the contract with this status."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    problem = schemas.Problem.model_validate(response.json())
    assert problem.status == status
    assert (status, problem.title) in {(error.status, error.title) for error in PROBLEMS}
    assert problem.instance == path
    assert problem.detail
    assert problem.request_id == response.headers["x-request-id"]


def post(client, upload, path="/score"):
    """The upload as a request; an empty content type is left out."""
    headers = {"content-type": upload.content_type.encode()} if upload.content_type else {}
    return client.post(path + upload.query, content=upload.body, headers=headers)


@pytest.mark.parametrize("upload", UPLOADS, ids=lambda upload: upload.label)
def test_an_upload_gets_the_status_and_body_of_the_contract(client, upload):
    """Whatever the upload, the answer is a good one or a problem body with the status that the contract names."""
    response = post(client, upload)
    if upload.status == 200:
        assert response.status_code == 200, response.text
        schemas.ScoreResponse.model_validate(response.json())
    else:
        check_problem(response, upload.status)


@pytest.mark.parametrize("path", ["/embed", "/reconstruct"])
def test_every_question_refuses_the_same_uploads(client, path):
    """The three questions share one way in: the others refuse what /score refuses, alpha included."""
    for upload in UPLOADS:
        if upload.label not in ("alpha=1e-9", "alpha=5e-324", "alpha=1e-310"):  # in range: only a threshold needs images
            assert post(client, upload, path).status_code == upload.status, upload.label


@pytest.mark.parametrize("path", QUESTIONS)
@pytest.mark.parametrize("accept", ["image/png", "application/x-npy", "*/*;q=0.1", "text/html", "x" * 5000, "/;;;q=,,,"])
def test_errors_are_problems_whatever_is_accepted(client, path, accept):
    """An error is a problem body even for a client that asked for a picture."""
    response = client.post(path, content=b"no image", headers={"content-type": PNG, "accept": accept})
    check_problem(response, 400, path)


def test_an_animation_counts_by_its_first_frame(client):
    """An animated GIF scores as its first frame does alone."""
    frames = stroke_images(3, seed=5)
    moving, still = (
        client.post("/score", content=body, headers={"content-type": "image/gif"}).json()["results"][0]["score"]
        for body in (animation(frames), animation(frames[:1]))
    )
    assert moving == pytest.approx(still, rel=1e-5)


@pytest.mark.parametrize("kind", [PNG, NPY, FORM])
def test_two_gigabytes_announced_are_refused_before_they_come(server, kind):
    """A Content-Length over the limit is answered without waiting for a single byte."""
    answer = speak(server, head(content_type=kind, content_length=2 * 2**30))
    assert answer.status == 413
    assert answer.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize("length", ["-1", "1e3", "99999999999999999999999999", "3, 4", "abc", "+3", ""])
def test_a_content_length_that_is_no_number_is_refused(server, length):
    """A Content-Length without meaning ends in a refusal, not in a wait."""
    assert speak(server, head(content_type=PNG, content_length=length), b"abc").status in (400, 413)


@pytest.mark.parametrize("kind", [PNG, FORM])
def test_a_body_that_never_ends_is_refused_at_the_limit(server, kind):
    """A chunked body without end is cut off when it passes the limit."""
    answer = speak(server, head(content_type=kind, transfer_encoding="chunked"), itertools.repeat(CHUNK))
    assert answer.status == 413
    schemas.Problem.model_validate_json(answer.body)


@pytest.mark.parametrize("kind", [PNG, FORM, NPY])
@pytest.mark.parametrize("pieces", [[b"5\r\nhello\r\n"], [], [b"5\r\nhel"]], ids=["chunk", "nothing", "half-chunk"])
def test_a_body_that_stalls_meets_the_deadline(strict_server, kind, pieces):
    """A client that stops sending is answered 408 when nothing has come for the body timeout."""
    answer = speak(strict_server, head(content_type=kind, transfer_encoding="chunked"), pieces, patience=3)
    assert answer.status == 408
    schemas.Problem.model_validate_json(answer.body)


@pytest.mark.parametrize("path", [*QUESTIONS, "/decode"])
def test_a_body_that_is_announced_and_never_comes_meets_the_deadline(strict_server, path):
    """A Content-Length with nothing behind it is answered 408 too."""
    assert speak(strict_server, head(path, content_type=PNG, content_length=10), patience=3).status == 408


@pytest.mark.parametrize(
    "start", [head()[:-2], head(content_type=PNG, transfer_encoding="chunked") + b"0\r\n"], ids=["head", "trailer"]
)
def test_a_head_that_never_ends_is_cut_off(server, start):
    """Header lines without end, before the body or after it, are refused before they fill the memory."""
    held = [server.memory]

    def lines():
        for number in range(16_000):
            if number % 500 == 0:
                held.append(server.memory)
            yield b"x-a: " + b"b" * 8000 + b"\r\n"

    assert speak(server, start, lines(), patience=12).status in (0, 400, 413, 431)
    assert max(held) - held[0] < 32 * 2**20


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.3"])
def test_an_offer_of_another_protocol_is_ignored(server, protocol):
    """A client that offers an upgrade, as some do with every request, is served as if it had not (RFC 9110, 7.8)."""
    good = png(stroke_images(1, seed=0)[0])
    headers = {"content_type": PNG, "content_length": len(good), "connection": "upgrade", "upgrade": protocol}
    assert speak(server, head(**headers), good, patience=20).status == 200


def test_the_limits_are_those_of_the_settings(strict_client):
    """Each limit on uploads is the one that its variable sets, and is named in the answer."""
    images = stroke_images(6, seed=0)
    for content_type, body, limit in (
        (PNG, bytes(4097), "4,096"),
        (NPY, npy(images.repeat(2, axis=0)), "8,192"),
        (NPY, npy(images), "5"),
        (FORM, form(*[file_part("a", b"")] * 4), "3"),
        (PNG, huge_png(101, 100), "10,000"),
    ):
        response = strict_client.post("/score", content=body, headers={"content-type": content_type})
        check_problem(response, 413)
        assert limit in response.json()["detail"]


def test_pictures_have_a_limit_of_their_own(strict_client):
    """/reconstruct draws only so many pictures, but gives any number as an array."""
    body, path = npy(stroke_images(3, seed=0)), "/reconstruct"
    for accept, status in (("application/json", 413), ("image/png", 413), (NPY, 200)):
        response = strict_client.post(path, content=body, headers={"content-type": NPY, "accept": accept})
        assert response.status_code == status
    check_problem(strict_client.post(path, content=body, headers={"content-type": NPY}), 413, path)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\xff\x00\xff\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /score HTTP/1.1\r\nhost: test\r\nno colon here\r\n\r\n",
        b"POST /score HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        head(content_type=PNG, content_length=3, transfer_encoding="chunked") + b"0\r\n\r\n",
        b"POST /score HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
    ],
    ids=["noise", "http-9", "no-colon", "bad-chunk", "tls", "two-framings", "two-lengths"],
)
def test_what_is_not_http_is_refused(server, client, request_):
    """Bytes that are no request are answered with a refusal or a closed connection, and nothing else suffers."""
    assert speak(server, request_, patience=20).status in (0, 400)
    assert client.get("/livez").status_code == 200


def test_clients_that_leave_harm_nobody(server, client):
    """Connections dropped in the middle of a body leave the server as it was."""
    good = png(stroke_images(1, seed=0)[0])
    for cut in range(0, len(good), 20):
        with socket.create_connection(("127.0.0.1", server.port)) as line:
            line.sendall(head(content_type=PNG, content_length=len(good)) + good[:cut])
    assert client.post("/score", content=good, headers={"content-type": PNG}).status_code == 200


def test_the_lot_leaves_memory_flat(server, client):
    """After the whole lot, again and again, the server holds no more memory than after the first time, and answers."""

    bomb = bomb_png(megabytes=256)

    def the_lot():
        for upload in UPLOADS:
            post(client, upload)
        speak(server, head(content_type=PNG, content_length=2 * 2**30))
        speak(server, head(content_type=PNG, transfer_encoding="chunked"), itertools.repeat(CHUNK))
        client.post("/score", content=bomb, headers={"content-type": PNG})

    the_lot()
    before = server.memory
    for _ in range(2):
        the_lot()
    assert server.memory - before < 24 * 2**20
    assert json.loads(client.get("/readyz").content)["status"] == "ready"


def test_many_hostile_clients_at_once_get_their_own_answers(client):
    """Refusals do not get mixed up under concurrency."""
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda upload: post(client, upload).status_code, UPLOADS))
    assert statuses == [upload.status for upload in UPLOADS]


def test_a_refused_client_that_is_still_sending_reads_its_answer(server):
    """A client that sends all of a body that is too large, and only then reads, still finds the 413."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        response = client.post("/score", content=bytes(12 * 2**20), headers={"content-type": PNG})
    check_problem(response, 413)
