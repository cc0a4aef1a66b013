"""Errors as responses: any exception in, the RFC 9457 problem response out."""

import difflib
import logging
import random
import re

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from app.serving.engine.admission import Overloaded
from app.serving.engine.inference import NotLoaded
from app.serving.engine.models import UnknownModel
from app.serving.errors import (
    BY_STATUS,
    MEDIA_TYPE,
    RESULT,
    BadRequest,
    DeadlinePassed,
    InternalError,
    MethodNotAllowed,
    NotFound,
    OutOfRange,
    Problem,
    Unavailable,
)
from app.serving.http.body import BytesResponse
from app.serving.telemetry.metrics import record_rejection

logger = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST = 499  # nginx's status for a client that left before its response


class ProblemResponses:
    """Makes the response for an error, counts it, and logs it with its trace if it was not foreseen."""

    def __init__(self, deadline_ms: float) -> None:
        self._deadline_ms = deadline_ms
        self.paths: list[str] = []  # of all routes, to suggest the nearest one for an unknown path

    def __call__(self, scope: Scope, error: Exception) -> Response:
        if isinstance(error, TimeoutError):
            error = DeadlinePassed(f"The request was not answered within {self._deadline_ms:g} ms; the server is busy.")
        problem = _routing_problem(scope, error, self.paths) or problem_for(error)
        if isinstance(problem, InternalError):
            logger.error("request %s failed", scope["state"]["request_id"], exc_info=error)
        record_rejection(problem.type)
        return problem_response(problem, scope)

    def add_to(self, app: FastAPI) -> None:
        """Let `app` answer the errors of its endpoints, and its own, with problem responses."""
        engine = (Overloaded, NotLoaded, UnknownModel, TimeoutError)
        for kind in (Problem, *engine, HTTPException, RequestValidationError, Exception):
            app.add_exception_handler(kind, self._handle)

    async def _handle(self, request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):  # nobody receives this response
            return Response(status_code=CLIENT_CLOSED_REQUEST)
        if isinstance(error.__cause__, Problem):  # there is no memory for the response: the middleware answers
            return Response(status_code=error.__cause__.status)
        return self(request.scope, error)


def _routing_problem(scope: Scope, error: Exception, paths: list[str]) -> Problem | None:
    """The problem for a path or a method that the application does not have, with those that it has; None for other errors."""
    if not isinstance(error, HTTPException):
        return None
    root = scope.get("root_path", "")
    route = scope["path"].removeprefix(root)
    if error.status_code == 405 and (allowed := dict(error.headers or {}).get("Allow")):
        allowed = re.sub(r"\bGET\b(?!.*\bHEAD\b)", "GET, HEAD", allowed)  # FastAPI does not list it
        return MethodNotAllowed(f"{route} takes {allowed}, not {scope['method']}.", {"Allow": allowed})
    if error.status_code != 404 or error.detail != "Not Found":
        return None
    near = difflib.get_close_matches(route[:100], paths, n=1, cutoff=0.5)
    hint = f"; did you mean {root}{near[0]}?" if near else "."
    return NotFound(f"There is no such path{hint} {root}/docs describes all.")


def problem_for(error: Exception) -> Problem:
    """The problem that the client is told about when `error` was raised."""
    if isinstance(error, Problem):
        return error
    if isinstance(error.__cause__, Problem):  # Starlette wraps what its `send` raises
        return error.__cause__
    if isinstance(error, Overloaded):
        seconds = str(error.retry_after)
        return Unavailable(f"Too many requests are waiting; try again in {seconds} s.", {"retry-after": seconds})
    if isinstance(error, NotLoaded):
        return Unavailable(str(error), {"retry-after": "1"})
    if isinstance(error, UnknownModel):
        return NotFound(str(error))
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return OutOfRange(f"{'.'.join(str(step) for step in first['loc'])}: {first['msg']}.")
    if isinstance(error, HTTPException) and error.status_code in BY_STATUS:
        return BY_STATUS[error.status_code](error.detail, dict(error.headers or {}))
    return InternalError("Something unexpected happened; the server's log has the details under this request id.")


def problem_response(problem: Problem, scope: Scope) -> Response:
    """The response for `problem` to the request of `scope`. Under /v2 its body is that of the Open Inference Protocol."""
    root = scope.get("root_path", "")
    route = scope["path"].removeprefix(root)
    if route.startswith("/v2"):
        response = BytesResponse(to_json({"error": problem.detail}), "application/json", problem.status)
    else:
        content = problem.body(scope["path"], scope["state"]["request_id"], root)
        response = BytesResponse(to_json(content), MEDIA_TYPE, problem.status)
    response.raw_headers += [(name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()]
    response.raw_headers.append((RESULT, b"problem=" + problem.type.encode()))
    return response


def new_request_id() -> str:
    """A random request id: 16 hexadecimal digits."""
    return f"{random.getrandbits(64):016x}"


def last_response(problem: Problem) -> bytes:
    """The bytes of a whole HTTP/1.1 response to a request that no application sees, after which the connection is closed."""
    request_id = new_request_id()
    body = to_json(problem.body("", request_id))
    headers = {"x-request-id": request_id, RESULT.decode(): f"problem={problem.type}", **problem.headers}
    extra = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())
    head = (problem.status, problem.title.encode(), MEDIA_TYPE.encode(), len(body), extra)
    return b"HTTP/1.1 %d %s\r\ncontent-type: %s\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n" % head + body


def too_many_connections() -> Problem:
    """The reply on a connection beyond the maximum."""
    return Unavailable("There are too many connections.", {"retry-after": "1"})


def parser_problem(error: Exception) -> Problem:
    """The reply to a request at which the parser stopped with `error`, or at which a callback stopped it."""
    if isinstance(error.__context__, Problem):
        return error.__context__.with_traceback(None)  # whose frames refer to the connection: a reference cycle
    return BadRequest("The request is not valid HTTP.")
