import asyncio
import itertools
import json
import re
import socket
import sys
from functools import partial
from types import SimpleNamespace

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import head, serving, speak
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from strokes import png, stroke_images

from app.main import create_app
from app.serving import schemas
from app.serving.errors import Unavailable
from app.serving.http import middleware
from app.serving.http.body import ByteBudget
from app.serving.http.middleware import PUBLIC_PATHS, RequestContext, RequestMiddleware, request_id
from app.serving.http.root_path import normalise_root_path
from app.serving.settings import Settings

BODY = png(stroke_images(1, seed=0)[0])


def ask(outcome, method="GET", path="/outcome", **headers):
    """What a client of the whole application gets where an endpoint returns or raises `outcome`."""

    async def endpoint(request: Request) -> Response:
        if isinstance(outcome, Exception):
            raise outcome
        return PlainTextResponse(outcome)

    app = create_app(Settings(access_log=False))
    app.app.add_api_route("/outcome", endpoint, methods=["GET", "POST"], response_model=None)

    async def request():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})

    return asyncio.run(request())


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/outcome"), ("POST", "/outcome"), ("POST", "/score"), ("GET", "/nowhere")]
)
def test_every_answer_carries_the_request_id(method, path):
    """The client's own id where it sent a sane one, and another each time where it did not."""
    assert ask("hello", method, path, x_request_id="job-7.a:b_C").headers["x-request-id"] == "job-7.a:b_C"
    made = {ask("hello", method, path).headers["x-request-id"] for _ in range(5)}
    assert len(made) == 5


@given(st.binary(max_size=80))
def test_an_id_is_always_fit_for_headers_and_logs(value):
    """Whatever a client sends as id, what is used is short, plain and not empty; a sane one is used as it is."""
    used = request_id(value)
    assert re.fullmatch("[A-Za-z0-9._:-]{1,64}", used)
    if re.fullmatch(b"[A-Za-z0-9._:-]{1,64}", value):
        assert used == value.decode()


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("secret"), RuntimeError(), KeyError("x"), MemoryError(), HTTPException(418)]
)
def test_an_error_that_nobody_foresaw_is_a_500_that_gives_nothing_away(caplog, error):
    """The client gets a problem body with the id; the log gets the trace under the same id."""
    response = ask(error, x_request_id="trace-me")
    assert response.status_code == 500
    problem = schemas.Problem.model_validate(response.json())
    assert problem.request_id == "trace-me"
    assert "secret" not in response.text
    assert any("trace-me" in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize(
    ("error", "status", "header"),
    [
        (HTTPException(404), 404, None),
        (HTTPException(405, headers={"Allow": "GET"}), 405, ("allow", "GET, HEAD")),
        (HTTPException(405, headers={"Allow": "GET, HEAD"}), 405, ("allow", "GET, HEAD")),
        (HTTPException(405, headers={"Allow": "POST"}), 405, ("allow", "POST")),
        (Unavailable("Wait.", {"retry-after": "3"}), 503, ("retry-after", "3")),
    ],
)
def test_an_error_with_a_status_is_its_problem(error, status, header):
    """The framework's errors and the program's own are worded alike and keep their headers."""
    response = ask(error)
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert schemas.Problem.model_validate(response.json()).status == status
    assert header is None or response.headers[header[0]] == header[1]


def test_each_request_is_one_line_in_the_log(server, client):
    """The client's address, method, path, status and id; nothing of the body or the query."""
    client.get("/nowhere?key=secret", headers={"x-request-id": "line-1"})
    assert re.search(r'127\.0\.0\.1 "GET /nowhere" 404 \d+\.\d ms \[line-1\]$', server.told("line-1"))
    assert "secret" not in server.log.read_text()


@pytest.mark.parametrize("hosts", [b"", b"host: a\r\nhost: b\r\n"], ids=["none", "two"])
def test_a_request_needs_one_host(server, hosts):
    """RFC 9112, 3.2: without Host, or with two, the request is not valid."""
    answer = speak(server, b"GET /livez HTTP/1.1\r\n" + hosts + b"\r\n")
    assert answer.status == 400
    assert schemas.Problem.model_validate_json(answer.body).type == "/problems/bad-request"


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip"])
def test_an_encoded_body_is_not_supported(client, coding):
    """415; the coding `identity` is no coding."""
    post = partial(client.post, "/score", content=BODY)
    assert post(headers={"content-type": "image/png", "content-encoding": coding}).status_code == 415
    assert post(headers={"content-type": "image/png", "content-encoding": "Identity"}).status_code == 200


ROOTED = ("/", "/page.css", "/docs", "/openapi.json", "/livez", "/readyz", "/model", "/problems/too-large", "/v2", "/score")


def test_everything_works_under_a_path_prefix(tiny_store, tmp_path):
    """Whether the proxy strips the prefix or not, and with keys: pages and probes stay public, the rest needs the key."""
    key = "k" * 16
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_API_KEYS": key, "ODDIGIT_DRAIN_S": "0"}
    command = (sys.executable, "-m", "uvicorn", "app.main:app", "--root-path", "/odd")
    with (
        serving(tmp_path / "a", "--root-path", "/odd", **variables) as own,
        serving(tmp_path / "b", command=command, ends=(0, -15), **variables) as uvicorns,
    ):
        for server, path, prefix in itertools.product((own, uvicorns), ROOTED, ("", "/odd")):
            ask = partial(httpx.request, "POST" if path == "/score" else "GET", server.url + prefix + path, content=BODY)
            allowed = ask(headers={"x-api-key": key, "content-type": "image/png"})
            assert allowed.status_code == 200, (prefix, path, allowed.text)
            public = path in PUBLIC_PATHS or path.startswith("/problems/")
            assert ask(headers={"content-type": "image/png"}).status_code == (200 if public else 401)
        moved = httpx.get(f"{own.url}/odd")  # below it, the page's links would lead nowhere
        assert (moved.status_code, moved.headers["location"]) == (308, "/odd/")
        refused = httpx.get(f"{own.url}/odd/scor", headers={"x-api-key": key}).json()
        assert (refused["type"], refused["instance"]) == ("/odd/problems/not-found", "/odd/scor")
        files = [("file", ("a.png", BODY)), ("file", ("b.png", b"text"))]
        failed = httpx.post(f"{own.url}/odd/score", files=files, headers={"x-api-key": key}).json()["results"][1]
        assert failed["error"]["type"] == "/odd/problems/not-an-image"
        assert "/odd/score" in refused["detail"] and refused["detail"].endswith("/odd/docs describes all.")


def test_forwarded_addresses_are_used_from_trusted_proxies_only(tiny_store, tmp_path):
    """X-Forwarded-For of the proxy in the settings names the client in the log; that of anyone else does not."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0"}
    for trusted, address in (("127.0.0.1", "203.0.113.7"), ("10.0.0.0/8", "127.0.0.1")):
        with serving(tmp_path / address, ODDIGIT_TRUSTED_PROXIES=trusted, **variables) as server:
            httpx.get(f"{server.url}/livez", headers={"x-forwarded-for": "203.0.113.7", "x-request-id": "via"})
            assert f' {address} "GET /livez"' in server.told("via")
            httpx.get(f"{server.url}/livez", headers={"x-forwarded-for": 'a "GET /" 200', "x-request-id": "forged"})
            assert f' {"-" if trusted == "127.0.0.1" else address} "GET /livez"' in server.told("forged")


@pytest.mark.parametrize("path", ["/score", "/decode", "/v2/models/mnist/infer"])
def test_a_client_that_left_is_no_error(server, path):
    """A connection that closes in the middle of its body is a line in the log with nginx's number, and no more."""
    name = f"left{path.replace('/', '-')}"
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head(path, content_type="image/png", content_length=100, x_request_id=name) + b"half")
    assert f'"POST {path}" 499' in server.told(name)  # told: there is one line
    assert 'reason="internal-error"' not in httpx.get(f"{server.url}/metrics").text


def test_before_a_model_is_loaded_the_server_is_alive_but_not_ready():
    """Probes and questions tell the two apart; the refusal says when to come back."""
    assert ask("", path="/livez").status_code == 200
    for method, path in (("GET", "/readyz"), ("GET", "/model"), ("GET", "/latent")):
        response = ask("", method, path)
        assert response.status_code == 503
        assert response.headers["retry-after"]
        assert schemas.Problem.model_validate(response.json()).status == 503


@pytest.mark.parametrize("path", ["/score", "/livez", "/nowhere", "/decode", "/model"])
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "HEAD", "BREW"])
def test_every_method_on_every_path_has_an_answer_of_the_contract(server, path, method):
    """200, or a problem with a status of the contract and the id in the header; never a 500."""
    answer = speak(server, head(path, method, x_request_id="abc", content_length=0), patience=20)
    assert answer.status in (200, 400, 404, 405, 415, 422)
    if answer.headers.get("x-request-id") == "abc" and answer.status != 200 and method != "HEAD" and answer.body:
        problem = schemas.Problem.model_validate(json.loads(answer.body))
        assert (problem.status, problem.instance, problem.request_id) == (answer.status, path, "abc")
    if answer.status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/model", "/openapi.json", "/docs"])
def test_what_can_be_got_can_be_headed(client, path):
    """HEAD is answered as GET is, without the body (RFC 9110, 9.3.2)."""
    got, headed = client.get(path), client.head(path)
    assert headed.status_code == got.status_code == 200
    assert headed.content == b""
    assert headed.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize(
    "path",
    [
        "/score/",
        "//score",
        "/./score",
        "/score/../score",
        "/score%00",
        "/%2e%2e/etc/passwd",
        "/SCORE",
        "/%ff%fe",
        "/" + "a" * 8000,
    ],
)
def test_a_path_that_is_none_is_not_found(server, path):
    """Variations of a path are answered like any other path that is not there, or led to the one that is."""
    answer = speak(server, head(path, content_type="image/png", content_length=0), patience=20)
    assert answer.status in (307, 400, 404)


def test_no_cookie_reaches_the_framework():
    """It would parse them, 30 KB of one in more than a second; no endpoint reads cookies."""
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["headers"])

    middleware = object.__new__(RequestMiddleware)
    middleware.app = app
    headers = [(b"host", b"x"), (b"cookie", b"a=b"), (b"accept", b"*/*"), (b"cookie", b"c=d")]
    context = RequestContext({"type": "http", "method": "GET", "headers": headers}, None, None, ByteBudget(1), closing=False)
    asyncio.run(middleware._call_app(context))
    assert seen == [[(b"host", b"x"), (b"accept", b"*/*")]]


@pytest.mark.parametrize("path", ["/livez", "/page.js", "/latent", "/v2/models/mnist/infer", "/nowhere"])
def test_a_long_query_is_refused_everywhere(client, path):
    """The framework would parse it, 30 KB in 30 ms."""
    assert client.get(f"{path}?{'a&' * 1_100}").status_code == 422


def test_an_id_with_line_ends_or_overlength_is_replaced(client):
    """What could break a log line is not taken over."""
    for wrong in ("a b", "x" * 65, 'a"b', "ä".encode(), "a\tb"):
        made = client.get("/livez", headers={"x-request-id": wrong}).headers["x-request-id"]
        assert made.isalnum()


def test_requests_on_one_connection_are_answered_in_order(server):
    """Pipelined requests, refused ones and images among them, get their answers one after the other."""
    paths = ["/livez", "/score", "/nowhere", "/score", "/score", "/readyz", "/nowhere", "/livez"]
    image, requests = png(stroke_images(1, seed=0)[0]), []
    for number, path in enumerate(paths):
        if path == "/score":
            requests.append(
                head(path, content_type="image/png", content_length=len(image), x_request_id=f"id-{number}") + image
            )
        else:
            requests.append(head(path, "GET", x_request_id=f"id-{number}"))
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(b"".join(requests))
        text = b""
        while text.count(b"HTTP/1.1 ") < len(paths) or not text.rstrip().endswith(b"}"):
            piece = line.recv(65536)
            assert piece, text
            text += piece
    answers = text.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"404" if path == "/nowhere" else b"200" for path in paths]
    for number, answer in enumerate(answers):
        assert answer.count(b"x-request-id: ") == 1
        assert f"x-request-id: id-{number}\r\n".encode() in answer
        assert (b"is_anomaly" in answer) is (paths[number] == "/score")


@pytest.mark.parametrize(
    ("root", "path", "route"), [("/", "/score", "/score"), ("", "/", "/"), ("/odd", "/odd/odd/score", "/score")]
)
def test_the_path_below_the_prefix(root, path, route):
    """A root path of one slash is none."""
    assert normalise_root_path({"root_path": root, "path": path})[1] == route


def test_a_large_response_that_is_not_read_gives_its_memory_back(monkeypatch):
    """A client that reads slowly keeps a share of the budget for a while, and not for hours."""
    monkeypatch.setattr(middleware, "_MAX_SEND_S", 0.1)
    budget = ByteBudget(10**6)

    async def send(message):
        if message.get("more_body"):
            await asyncio.sleep(10)

    async def respond():
        context = RequestContext({"type": "http", "headers": []}, None, send, budget, closing=True)
        with pytest.raises(ClientDisconnect):
            await context.respond(Response(bytes(300_000)))

    asyncio.run(asyncio.wait_for(respond(), 5))
    assert budget.acquire(10**6)


def test_other_requests_have_their_turn_while_a_large_response_is_sent():
    """To a client that reads so fast that `send` never waits."""
    sent, seen = [], []

    async def send(message):
        sent.append(message)

    async def respond():
        context = RequestContext(
            {"type": "http", "headers": []}, SimpleNamespace(complete=True), send, ByteBudget(10**6), closing=False
        )
        responding = asyncio.create_task(context.respond(Response(bytes(500_000))))
        while not responding.done():
            seen.append(len(sent))
            await asyncio.sleep(0)

    asyncio.run(respond())
    assert b"".join(message.get("body", b"") for message in sent) == bytes(500_000)
    assert max(later - earlier for earlier, later in itertools.pairwise([*seen, len(sent)])) <= 2
