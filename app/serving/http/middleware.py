"""The outermost layer of the server, plain ASGI: every request passes here, every answer leaves here.

Gives each request an id, checks its key, turns every error into a problem body, counts, logs a line, and leads the questions
that are asked most straight to their endpoints, past the framework's routing, which costs more than the model.
"""

import asyncio
import logging
import random
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serving.api.query import JSON
from app.serving.api.responses import json_bytes
from app.serving.engine.admission import Admission, Overloaded
from app.serving.engine.inference import NotLoaded
from app.serving.errors import BY_STATUS, MEDIA_TYPE, InternalError, Problem, Unauthorized, Unavailable
from app.serving.http.auth import ApiKeyAuth
from app.serving.http.exchange import EXCHANGE
from app.serving.http.limits import NO_ROOM, Answer, Header
from app.serving.http.shutdown import Draining
from app.serving.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)
access = logging.getLogger("oddigit.access")

Endpoint = Callable[[Request], Awaitable[Response]]

PROBES = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
OPEN = frozenset(
    {"/", "/page.css", "/page.js", "/docs", "/docs.css", "/docs.js", *PROBES}
)  # asked for without a key, and while draining
_PROBLEMS = "/problems/"  # as open: a refusal's `type` leads there

_CARRIED = "oddigit_error"
_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_LINGER_BYTES, _LINGER_S = 16 * 2**20, 2.0


class Front:
    """ASGI middleware around the framework's application."""

    def __init__(
        self,
        app: ASGIApp,
        straight: Mapping[str, Endpoint],
        guard: ApiKeyAuth,
        admission: Admission,
        metrics: Metrics,
        draining: Draining,
    ) -> None:
        """`straight` maps paths to the POST endpoints that bypass `app`; `admission` is theirs."""
        self._app = app
        self._straight = straight
        self._guard = guard
        self._admission = admission
        self._metrics = metrics
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = Visit(scope, receive, send)
        route = scope["path"]
        try:
            if route not in OPEN and not route.startswith(_PROBLEMS):
                self._let_in(visit, scope)
            endpoint = self._straight.get(route) if scope["method"] == "POST" else None
            if endpoint is None:
                if scope["method"] == "HEAD":  # answered as GET; the server leaves the body out
                    scope = {**scope, "method": "GET"}
                await self._app(scope, visit.receive, visit.send)
                if error := scope["state"].pop(_CARRIED, None):
                    raise error
                route = getattr(scope.get("route"), "path", "other")  # a template: clients must not invent time series
            else:
                await visit.answer(await endpoint(Request(scope, visit.receive)))
        except ClientDisconnect:
            visit.status = 499  # nobody is left to answer; nginx's number for it
        except Exception as error:
            route = route if route in self._straight else getattr(scope.get("route"), "path", "other")
            self._metrics.record_rejection(await visit.fail(error))
        finally:
            took = time.perf_counter() - visit.started
            self._metrics.record_request(route, visit.status, took)
            log(scope, visit.status, took, visit.client)

    def turn_away(self, scope: Scope) -> Answer | None:
        """Once there is room for no further question: the answer to one, by its head alone; None for other requests.

        Refused on its usual way a question costs several times as much: at four times the capacity, a sixth of it.
        """
        if scope["method"] != "POST" or scope["path"] not in self._straight:
            return None
        client = None if self._guard.open else self._guard.name_of(scope["headers"])
        if self._draining.on or not (self._guard.open or client):
            return None
        began = time.perf_counter()
        scope["state"]["request_id"] = identity = request_id(scope)
        problem = problem_for(self._admission.refusal())
        headers, body = problem_answer(problem, scope)
        self._metrics.record_rejection(problem.type)
        self._metrics.record_request(scope["path"], problem.status, time.perf_counter() - began)
        log(scope, problem.status, time.perf_counter() - began, client)
        return problem.status, marked(headers, identity), body

    def _let_in(self, visit: "Visit", scope: Scope) -> None:
        """Refuse clients without a key, and everything once the server is on its way out."""
        if self._draining.on:
            raise Unavailable("The server is shutting down.", {"retry-after": "1", "connection": "close"})
        if not self._guard.open:
            visit.client = self._guard.name_of(scope["headers"])
            if visit.client is None:
                raise Unauthorized("Send a key as X-API-Key or as Authorization: Bearer.", {"www-authenticate": "Bearer"})


class CarryErrors:
    """ASGI middleware inside the framework's: hands every error to the front, or the framework would answer it by itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            scope["state"][_CARRIED] = error


class Visit:
    """One request on its way through: its id, its status, and whether its body was read to the end."""

    __slots__ = ("_receive", "_send", "client", "id", "scope", "started", "status", "unread")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.started = time.perf_counter()
        self.id = request_id(scope)
        self.client: str | None = None
        self.status = 0
        self.unread = True
        scope.setdefault("state", {})["request_id"] = self.id

    async def receive(self) -> Message:
        message = await self._receive()
        self.unread = message.get("more_body", False)
        if self.scope["state"].pop(NO_ROOM, False) and not self.status:  # a body that is read to be dropped needs none
            raise Overloaded(1)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = marked(message.get("headers", ()), self.id)
        await self._send(message)

    async def answer(self, response: Response) -> None:
        """Answer with a response that is there as a whole, past ASGI's messages where the server knows how to."""
        exchange = self.scope.get("extensions", {}).get(EXCHANGE)
        headers = marked(response.raw_headers, self.id)
        if exchange is not None and exchange.answer(response.status_code, headers, response.body):
            self.status = response.status_code
        else:
            await response(self.scope, self.receive, self.send)

    async def fail(self, error: Exception) -> str:
        """Answer with the error's problem -> its type; one that nobody foresaw is logged whole."""
        problem = problem_for(error)
        if isinstance(problem, InternalError):
            logger.error("request %s failed", self.id, exc_info=error)
        if self.status:  # the answer has begun; closing the connection is all that is left to say
            raise error
        headers, body = problem_answer(problem, self.scope)
        lingering = self.unread and self.scope["method"] in ("POST", "PUT", "PATCH")
        if lingering and "connection" not in problem.headers:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": lingering})
        if lingering:
            await self._linger()
        return problem.type

    async def _linger(self) -> None:
        """Read on for a while before the connection closes, or a client that still sends would lose the answer to a reset."""
        received, until = 0, time.perf_counter() + _LINGER_S
        while self.unread and received < _LINGER_BYTES:
            left = until - time.perf_counter()
            message = await _within(left, self.receive)
            if message is None or message["type"] == "http.disconnect":
                break
            received += len(message.get("body", b""))
        await self._send({"type": "http.response.body", "body": b""})


def marked(headers: Iterable[Header], identity: str) -> list[Header]:
    """An answer's headers with those that every answer has."""
    return [*headers, (b"x-request-id", identity.encode()), _NO_SNIFFING]


def log(scope: Scope, status: int, took: float, client: str | None) -> None:
    """The access log's line for an answer, where there is an access log."""
    if not access.isEnabledFor(logging.INFO):
        return
    by = f" by {client}" if client else ""
    path = scope["raw_path"].decode("latin-1")  # as it was sent: no line end in it, so no line of the client's own
    access.info(
        '"%s %s" %d %.1f ms%s', scope["method"], path, status, took * 1000, by,
        extra={"request_id": scope["state"]["request_id"]},
    )  # fmt: skip


def request_id(scope: Scope) -> str:
    """The client's X-Request-ID where it is sane, else one of our own."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{random.getrandbits(64):016x}"


def problem_for(error: Exception) -> Problem:
    """The problem that a client is told of for an error raised inside."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, Overloaded):
        again = str(error.retry_after)
        return Unavailable(f"Too much is waiting already; try again in {again} s.", {"retry-after": again})
    if isinstance(error, NotLoaded):
        return Unavailable(str(error), {"retry-after": "1"})
    if isinstance(error, HTTPException) and error.status_code in BY_STATUS:
        return BY_STATUS[error.status_code](error.detail, dict(error.headers or {}))
    return InternalError("Something unexpected happened; the server's log has the details under this request id.")


def problem_answer(problem: Problem, scope: Scope) -> tuple[list[Header], bytes]:
    """Headers and body of a problem, for the request of `scope`."""
    if scope["path"].startswith("/v2"):
        media, content = JSON, {"error": problem.detail}  # as the Open Inference Protocol has it
    else:
        media, content = MEDIA_TYPE, problem.body(scope["path"], scope["state"]["request_id"])
    body = json_bytes(content)
    headers = [
        (b"content-type", media.encode()),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in problem.headers.items()),
    ]
    return headers, body


async def _within(seconds: float, receive: Receive) -> Message | None:
    try:
        async with asyncio.timeout(max(seconds, 0)):
            return await receive()
    except TimeoutError:
        return None
