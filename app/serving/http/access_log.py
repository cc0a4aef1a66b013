"""The access log: one line a request on standard error, formatted by hand and written in batches.

One record of the logging module for each request costs 29 % of the requests a second of small images; this costs 5 to 8 %.
Lines wait for at most 0.1 s; a process that is killed loses the lines that wait.
"""

import atexit
import sys
import time
from asyncio import get_running_loop
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import TextIO

from pydantic_core import to_json

from app.serving.errors import RESULT

_FLUSH_S = 0.1
_MAX_LINES = 200


class AccessLog:
    """Collects lines and writes them together. Belongs to one event loop."""

    def __init__(self, *, as_json: bool, stream: TextIO | None = None) -> None:
        """Lines are JSON objects with `as_json`, else text; `stream` is standard error unless given."""
        self._as_json = as_json
        self._stream = stream
        self._lines: list[str] = []
        self._scheduled = False
        self._second = 0
        self._time = ""  # of `_second`, formatted
        atexit.register(self.flush)

    def write(
        self,
        client: str,
        method: str,
        path: str,
        status: int,
        seconds: float,
        request_id: str,
        key_name: str | None,
        received: int = 0,
        sent: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Log one request: the client's address, the path as it was sent, the duration, and the name of the API key.

        `received` are the bytes of the body that were read; `sent` are the headers of the response.
        """
        now = time.time()
        if int(now) != self._second:
            self._second = int(now)
            shape = "%Y-%m-%dT%H:%M:%S" if self._as_json else "%H:%M:%S"
            self._time = time.strftime(shape, time.gmtime(now) if self._as_json else time.localtime(now))
        by = f" by {key_name}" if key_name else ""
        message = f'{client} "{method} {path}" {status} {seconds * 1000:.1f} ms{by}'
        if self._as_json:
            entry = {
                "time": f"{self._time}.{int(now % 1 * 1000):03d}Z",
                "level": "info",
                "logger": "oddigit.access",
                "message": message,
                "request_id": request_id,
                "client": client,
                "method": method,
                "path": path,
                "status": status,
                "ms": round(seconds * 1000, 1),
                "key": key_name,
                "bytes": received,
                **_fields(next((value for name, value in sent if name == RESULT), b"")),
            }
            self._lines.append(to_json(entry).decode() + "\n")
        else:
            self._lines.append(f"{self._time} INFO    {message} [{request_id}]\n")
        if len(self._lines) >= _MAX_LINES:
            self.flush()
        elif not self._scheduled:
            self._scheduled = True
            get_running_loop().call_later(_FLUSH_S, self._flush_scheduled)

    def flush(self) -> None:
        """Write all waiting lines; those that cannot be written, because a disk is full or a pipe closed, are lost."""
        if self._lines:
            lines, self._lines = self._lines, []
            stream = self._stream or sys.stderr
            with suppress(OSError, ValueError):
                stream.write("".join(lines))
                stream.flush()

    def _flush_scheduled(self) -> None:
        self._scheduled = False
        self.flush()


@lru_cache(maxsize=256)  # most results are alike; reading one takes as long as writing a line
def _fields(result: bytes) -> dict[str, int | str | None]:
    """The fields of an Oddigit-Result header: `images=3, anomalies=1` -> images 3, anomalies 1, problem None."""
    pairs = (pair.partition("=") for pair in result.decode("latin-1").split(", ") if pair)
    found = {name: int(value) if value.isdigit() else value for name, _, value in pairs}
    return {"images": None, "anomalies": None, "problem": None, **found}
