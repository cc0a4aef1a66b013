"""The ASGI middleware around FastAPI: request id, API key, limits of the body, errors, metrics and access log.

It holds the one short cut past the framework: `fast_endpoints` are called here, without FastAPI's middleware and routing, and
small responses to POST requests are written without uvicorn's `send`.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.serving.errors import BadRequest, OutOfRange, Unavailable, UnsupportedType
from app.serving.http.access_log import AccessLog, LoggedRequest
from app.serving.http.auth import ApiKeyAuth
from app.serving.http.body import MAX_DISCARDED_BODY_BYTES, ByteBudget, LimitedReceive, RequestLimits
from app.serving.http.problem_responses import CLIENT_CLOSED_REQUEST, ProblemResponses, new_request_id
from app.serving.http.protocol import WRITE_RESPONSE
from app.serving.http.root_path import normalise_root_path
from app.serving.http.shutdown import Draining
from app.serving.telemetry.metrics import OTHER, Metrics

Header = tuple[bytes, bytes]
Endpoint = Callable[[Request], Awaitable[Response]]

PROBES = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
PAGES = ("/", "/page.css", "/page.js", "/docs", "/docs.css", "/docs.js")
PUBLIC_PATHS = frozenset({*PAGES, *PROBES})  # need no API key
_PUBLIC_PREFIXES = ("/problems/", "/page/")  # where the `type` of every problem leads, and modules of the demo page

_VALID_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_CLOSE = (b"connection", b"close")
_SENT_PIECE_BYTES = 64 * 1024  # of a large response: the next one is sent when the client has read most of this one
_MAX_QUERY_BYTES = 2048
_MAX_SEND_S = 600.0  # for a response that takes a share of the budget, because it is larger than that


class RequestMiddleware:
    """The application that the server runs: FastAPI's, in a layer that every request passes."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        fast_endpoints: Mapping[str, Endpoint],
        auth: ApiKeyAuth,
        limits: RequestLimits,
        metrics: Metrics,
        problem_responses: ProblemResponses,
        draining: Draining,
        access_log: AccessLog | None,
        root_path: str = "",
    ) -> None:
        """`fast_endpoints`: POST endpoints by path, which are called without `app`. Through `app`, the same endpoints answer
        46 % fewer requests a second of one small PNG from 32 connections (three paired rounds on one core)."""
        self.app = app
        self._fast_endpoints = fast_endpoints
        self._auth = auth
        self._limits = limits
        self._metrics = metrics
        self._problem_responses = problem_responses
        self._draining = draining
        self._access_log = access_log
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route = path = scope["path"]
        if self._root_path or scope.get("root_path"):
            scope, route = normalise_root_path(scope, self._root_path)
        endpoint = self._fast_endpoints.get(route) if scope["method"] == "POST" else None
        body = LimitedReceive(receive, self._limits, scope["headers"])
        context = RequestContext(scope, body, send, self._limits.responses, closing=self._draining.on)
        try:
            context.check_head()
            if self._root_path and path == self._root_path and scope["method"] in ("GET", "HEAD"):
                # The links of the page are relative to this path with its slash.
                await context.respond(Response(status_code=308, headers={"location": f"{path}/"}))
                return
            if not self._auth.disabled and route not in PUBLIC_PATHS and not route.startswith(_PUBLIC_PREFIXES):
                context.key_name = self._auth.authenticate(context.headers)
            if endpoint is not None:
                await context.respond(await endpoint(Request(scope, body)))
            else:
                await self._call_app(context)
        except ClientDisconnect:
            context.status = CLIENT_CLOSED_REQUEST
        except Exception as error:
            if context.complete:  # FastAPI raises an error again after it has answered it
                pass
            elif context.status:
                raise  # the response has begun; the server closes the connection
            else:
                await context.respond(self._problem_responses(scope, error))
        finally:
            body.release()
            context.status = context.status or CLIENT_CLOSED_REQUEST  # the server stopped before the response
            seconds = time.perf_counter() - context.started
            self._metrics.record_request(route if endpoint else _route_template(context.scope), context.status, seconds)
            if self._access_log is not None:
                context.log(self._access_log, seconds)

    async def _call_app(self, context: "RequestContext") -> None:
        """Let FastAPI answer. It writes the route that it finds into the scope. HEAD is answered as GET, without the body."""
        scope = context.scope
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        if b"cookie" in context.headers:  # FastAPI parses cookies, in quadratic time, though no endpoint reads them
            scope = {**scope, "headers": [header for header in scope["headers"] if header[0] != b"cookie"]}
        try:
            await self.app(scope, context.receive, context.send)
        finally:
            context.scope["route"] = scope.get("route")


class RequestContext:
    """One request: its id and key, the status of its response, and the ASGI callables for its endpoint."""

    def __init__(self, scope: Scope, receive: LimitedReceive, send: Send, budget: ByteBudget, *, closing: bool) -> None:
        """`budget` is that of all response bodies; `closing`: tell the client to close the connection after the response."""
        self._budget = budget
        self._start: Message | None = None  # the head of the framework's response, until its body begins
        self.started = time.perf_counter()
        self.scope = scope
        self.receive = receive
        self._send = send
        self._closing = closing
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.id = request_id(self.headers.get(b"x-request-id", b""))
        self.key_name: str | None = None
        self.status = 0
        self._response_headers: list[Header] = []
        self.complete = False  # the whole response has been sent
        scope.setdefault("state", {})["request_id"] = self.id

    def check_head(self) -> None:
        """Check what HTTP requires of every request.

        Raises:
            BadRequest: the Host header is missing or occurs twice.
            UnsupportedType: the body has a content encoding.
            OutOfRange: the query string is too long.
        """
        headers, sent = self.headers, self.scope["headers"]
        if b"host" not in headers and self.scope["http_version"] != "1.0":
            raise BadRequest("The Host header is missing.")
        if len(headers) != len(sent) and sum(name == b"host" for name, _ in sent) > 1:
            raise BadRequest("There is more than one Host header.")
        if b"content-encoding" in headers and headers[b"content-encoding"].strip().lower() not in (b"identity", b""):
            raise UnsupportedType("Content-Encoding is not supported; send the body as it is.")
        if (length := len(self.scope["query_string"])) > _MAX_QUERY_BYTES:
            raise OutOfRange(f"The query string has {length:,} bytes; at most {_MAX_QUERY_BYTES:,} are read.")

    async def send(self, message: Message) -> None:
        """The ASGI `send` for the framework: adds the headers that every response has, and reserves memory for the body.

        Raises:
            Unavailable: the budget is exhausted; nothing has been sent yet.
        """
        if message["type"] == "http.response.start":
            self._start = message
            return
        start, self._start = self._start, None
        await self._send_body(start, message.get("body", b""), more=message.get("more_body", False))

    async def respond(self, response: Response) -> None:
        """Send a response whose body is complete. Raises Unavailable, before anything is sent: the budget is exhausted."""
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        if len(response.body) > _SENT_PIECE_BYTES:
            await self._send_body(start, response.body, more=False)
        elif not self._write_at_once(response):
            await self._send_head(start)
            await self._send({"type": "http.response.body", "body": response.body})
            self.complete = True

    def _write_at_once(self, response: Response) -> bool:
        """Write a small response without `send`: 6 % more requests a second (80 paired turns, 32 connections).

        Returns False if that is not possible; see `LimitedProtocol.write_response`.
        """
        write, status = self.scope.get("extensions", {}).get(WRITE_RESPONSE), response.status_code
        if write is None or self.scope["method"] != "POST" or self._closing:
            return False
        headers = self._with_default_headers([*response.raw_headers])
        if headers[-1] is _CLOSE or not write(self._send, status, headers, response.body):
            return False
        self.status, self._response_headers, self.complete = status, headers, True
        return True

    async def _send_body(self, start: Message | None, body: bytes | memoryview, *, more: bool) -> None:
        """Send the head, if there is one, and a body. `send` waits until the client has read most of the pieces before.

        Raises ClientDisconnect if the client has not read a body that takes a share of the budget within _MAX_SEND_S.
        """
        size = min(len(body), self._budget.size) if len(body) > _SENT_PIECE_BYTES else 0
        if not self._budget.acquire(size):
            raise Unavailable("Too many large responses are being sent.", {"retry-after": "1"})
        try:
            if start is not None:
                await self._send_head(start)
            async with asyncio.timeout(_MAX_SEND_S if size else None):
                while len(body) > _SENT_PIECE_BYTES:
                    piece, body = body[:_SENT_PIECE_BYTES], memoryview(body)[_SENT_PIECE_BYTES:]
                    await self._send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
                    await asyncio.sleep(0)  # other requests go on: `send` does not wait for a client that reads fast
                await self._send({"type": "http.response.body", "body": bytes(body), "more_body": more})
        except TimeoutError:
            raise ClientDisconnect from None
        finally:
            self._budget.release(size)
        self.complete = not more

    async def _send_head(self, start: Message) -> None:
        self.status = start["status"]
        start["headers"] = self._response_headers = self._with_default_headers(list(start.get("headers", ())))
        await self._send(start)

    def log(self, access_log: AccessLog, seconds: float) -> None:
        """Write the access log's line."""
        scope = self.scope
        client = scope.get("client")
        path = scope["raw_path"].decode("latin-1") if "raw_path" in scope else scope["path"]
        address = client[0] if client else "-"
        sent, received = self._response_headers, self.receive.received
        answered = (address, scope["method"], path, self.status, seconds, self.id, self.key_name, received, sent)
        access_log.write(LoggedRequest(*answered))

    def _can_discard_body(self) -> bool:
        """Whether what has not been received of the body can be dropped while the connection stays open.

        A proxy that is still sending would turn a closed connection into a 502.
        """
        declared = self.headers.get(b"content-length", b"0")
        return b"expect" not in self.headers and declared.isdigit() and int(declared) <= MAX_DISCARDED_BODY_BYTES

    def _with_default_headers(self, headers: list[Header]) -> list[Header]:
        headers += ((b"x-request-id", self.id.encode()), _NO_SNIFFING)
        if self._closing or not (self.receive.complete or self._can_discard_body()):
            headers.append(_CLOSE)
        return headers


def request_id(sent: bytes) -> str:
    """The client's X-Request-ID where it is short and plain, else a new random one."""
    if sent and _VALID_ID.fullmatch(sent):
        return sent.decode("ascii")
    return new_request_id()


def _route_template(scope: Scope) -> str:
    """The template of the route that the framework found, `other` without one."""
    template: str = getattr(scope.get("route"), "path", OTHER)
    return template
