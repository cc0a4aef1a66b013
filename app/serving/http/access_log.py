"""The access log: one line a request on standard error, formatted by hand and written in batches.

One record of the logging module for each request costs 29 % of the requests a second of small images; this costs 2 %, or 4 %
for lines of JSON. Formatting lines in a batch takes a third of the time that it takes between two requests. They wait for at
most 0.1 s; a process that is killed loses the lines that wait.
"""

import atexit
import re
import sys
import time
from asyncio import get_running_loop
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import NamedTuple, TextIO

from pydantic_core import to_json

from app.serving.errors import RESULT

_ADDRESS = re.compile(r"[0-9A-Za-z.:%_\[\]-]{1,64}")  # the characters of IP addresses, ports and zones
_FLUSH_S = 0.1
_MAX_LINES = 200


class LoggedRequest(NamedTuple):
    """A request for the access log: it was answered, or its client left."""

    client: str  # address
    method: str
    path: str  # as it was sent
    status: int
    seconds: float
    request_id: str
    key_name: str | None  # of the API key
    received: int = 0  # bytes of the body that were read
    headers: Sequence[tuple[bytes, bytes]] = ()  # of the response


class AccessLog:
    """Collects requests and writes their lines together. Belongs to one event loop."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        """Lines are JSON objects with `as_json`, else text; `stream` is standard error unless given."""
        self._line = _json_line if as_json else _text_line
        self._stream = stream
        self._waiting: list[tuple[float, LoggedRequest]] = []  # with the time of each
        self._scheduled = False
        atexit.register(self.flush)

    def write(self, request: LoggedRequest) -> None:
        """Log one request, now or within _FLUSH_S seconds."""
        self._waiting.append((time.time(), request))
        if len(self._waiting) >= _MAX_LINES:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            get_running_loop().call_later(_FLUSH_S, self._flush_scheduled)

    def flush(self) -> None:
        """Write all waiting lines; those that cannot be written, because a disk is full or a pipe closed, are lost."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            lines = "".join([self._line(when, request) for when, request in waiting])
            stream = self._stream or sys.stderr
            with suppress(OSError, ValueError):
                stream.write(lines)
                stream.flush()

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()


def _text_line(when: float, request: LoggedRequest) -> str:
    return f"{_local_time(int(when))} INFO    {_message(request)} [{request.request_id}]\n"


def _json_line(when: float, request: LoggedRequest) -> str:
    client, method, path, status, seconds, request_id, key_name, received, headers = request
    entry = {
        "time": f"{_utc_time(int(when))}.{int(when % 1 * 1000):03d}Z",
        "level": "info",
        "logger": "oddigit.access",
        "message": _message(request),
        "request_id": request_id,
        "client": _address(client),
        "method": method,
        "path": path,
        "status": status,
        "ms": round(seconds * 1000, 1),
        "key": key_name,
        "bytes": received,
        **_fields(next((value for name, value in headers if name == RESULT), b"")),
    }
    return to_json(entry).decode() + "\n"


def _message(request: LoggedRequest) -> str:
    client, method, path, status, seconds, _, key_name, _, _ = request
    by = f" by {key_name}" if key_name else ""
    return f'{_address(client)} "{method} {path}" {status} {seconds * 1000:.1f} ms{by}'


def _address(client: str) -> str:
    """The client's address, or `-` if it is not an address: proxies pass on the X-Forwarded-For that a client sent."""
    return client if _ADDRESS.fullmatch(client) else "-"


@lru_cache(maxsize=2)  # requests of the same second follow each other
def _local_time(second: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(second))


@lru_cache(maxsize=2)
def _utc_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


@lru_cache(maxsize=256)  # most results are alike; reading one takes as long as writing a line
def _fields(result: bytes) -> dict[str, int | str | None]:
    """The fields of an Oddigit-Result header: `images=3, anomalies=1` -> images 3, anomalies 1, problem None."""
    pairs = (pair.partition("=") for pair in result.decode("latin-1").split(", ") if pair)
    found = {name: int(value) if value.isdigit() else value for name, _, value in pairs}
    return {"images": None, "anomalies": None, "problem": None, **found}
