import asyncio
import json
import logging
import re
import socket

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from live import head, speak
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from app.main import create_app
from app.serving import schemas
from app.serving.errors import Unavailable
from app.serving.http.middleware import request_id
from app.serving.settings import Settings


def ask(outcome, method="GET", path="/outcome", **headers):
    """What a client of the whole application gets where an endpoint returns or raises `outcome`."""

    async def endpoint(request: Request) -> Response:
        if isinstance(outcome, Exception):
            raise outcome
        return PlainTextResponse(outcome)

    app = create_app(Settings())
    app.add_api_route("/outcome", endpoint, methods=["GET", "POST"], response_model=None)

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
    used = request_id({"headers": [(b"x-request-id", value)]})
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
        (HTTPException(405, headers={"Allow": "GET"}), 405, ("allow", "GET")),
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


def test_each_request_is_one_line_in_the_log(caplog):
    """Method, path, status and id; nothing of the body or the query."""
    caplog.set_level(logging.INFO, "oddigit.access")
    ask("hello", "GET", "/outcome?key=secret", x_request_id="line-1")
    (record,) = [record for record in caplog.records if record.name == "oddigit.access"]
    assert '"GET /outcome" 200' in record.getMessage()
    assert record.request_id == "line-1"
    assert "secret" not in record.getMessage()


def test_a_client_that_left_is_no_error(server):
    """A connection that closes in the middle of its body is a line in the log with nginx's number, and no more."""
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head(content_type="image/png", content_length=100, x_request_id="left-early") + b"half")
    assert '"POST /score" 499' in server.told("left-early")


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


def test_an_id_with_line_ends_or_overlength_is_replaced(client):
    """What could break a log line is not taken over."""
    for wrong in ("a b", "x" * 65, 'a"b', "ä".encode(), "a\tb"):
        made = client.get("/livez", headers={"x-request-id": wrong}).headers["x-request-id"]
        assert made.isalnum()


def test_requests_on_one_connection_are_answered_in_order(server):
    """Pipelined requests, refused ones among them, get their answers one after the other."""
    paths = ["/livez", "/nowhere", "/readyz", "/nowhere", "/livez"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(b"".join(head(path, "GET", x_request_id=f"id-{index}") for index, path in enumerate(paths)))
        text = b""
        while text.count(b"HTTP/1.1 ") < 5 or not text.rstrip().endswith(b"}"):
            text += line.recv(65536)
    assert [text.index(f"x-request-id: id-{index}".encode()) for index in range(5)] == sorted(
        text.index(f"x-request-id: id-{index}".encode()) for index in range(5)
    )
    assert [part[:3] for part in text.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200", b"404", b"200"]
