"""Request bodies: an ASGI `receive` in, complete bytes and form parts out, never more than a limit. Decodes no image."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.serving.errors import DeadlinePassed, InvalidBody, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_NAME_LIMIT = 255


class Part(NamedTuple):
    """One uploaded file: its name as the client gave it, its declared type ("" where none), its bytes."""

    name: str
    content_type: str
    data: bytes


async def read_body(
    receive: Receive, headers: Mapping[bytes, bytes], *, limit: int, timeout_s: float, complete: bool = False
) -> bytes:
    """The whole body. Its size is checked against `limit` bytes before and while it streams; `complete`: it has arrived.

    Raises:
        TooLarge: more than `limit` bytes were declared or sent.
        DeadlinePassed: the client took longer than `timeout_s` seconds.
        ClientDisconnect: the client went away.
    """
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit:
        raise _too_large(limit)
    if complete:
        return await _read_on(receive, limit)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_on(receive, limit)
    except TimeoutError:
        raise DeadlinePassed(f"The body did not arrive within {timeout_s:g} seconds.") from None


async def _read_on(receive: Receive, limit: int) -> bytes:
    message = await receive()
    first = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False) and len(first) <= limit:
        return bytes(first)  # nearly always: nothing needs to be put together
    body = bytearray()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)
        message = await receive()
    raise ClientDisconnect


def parse_form(body: bytes, content_type: str, *, max_parts: int) -> list[Part]:
    """The parts named `file` of a multipart/form-data body, in order.

    Raises:
        InvalidBody: the form is malformed or holds no such part.
        TooLarge: it has more than `max_parts` parts.
    """
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidBody("The multipart content type names no boundary.")
    reader = _FormReader(max_parts)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError):
        raise InvalidBody("The form is malformed, or its boundary is not the one that the content type names.") from None
    if not reader.parts:
        raise InvalidBody("The form has no part named 'file'; send one as `curl -F file=@seven.png`.")
    return reader.parts


class _FormReader:
    """Collects what the multipart parser calls out."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self._max_parts = max_parts
        self._seen = 0
        self._headers: dict[bytes, bytes] = {}
        self._field = b""
        self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._seen += 1
        if self._seen > self._max_parts:
            raise TooLarge(f"The form has more than {self._max_parts} parts; send the images in several requests.")
        self._headers, self._data = {}, []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def _end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if options.get(b"name") != b"file":
            return
        name = readable(_file_name(options)) or f"file {len(self.parts) + 1}"
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        self.parts.append(Part(name, media_type(content_type), b"".join(self._data)))


def _file_name(options: Mapping[bytes, bytes]) -> str:
    """`filename`, or `filename*` as RFC 8187 writes names that are not ASCII."""
    extended = options.get(b"filename*", b"").decode("latin-1")
    if extended.lower().startswith("utf-8'"):
        return unquote(extended.rpartition("'")[2], errors="replace")
    return options.get(b"filename", b"").decode("utf-8", "replace")


def media_type(content_type: str) -> str:
    """`image/png` of `Image/PNG; q=1`."""
    return content_type.partition(";")[0].strip().lower()


def readable(name: str) -> str:
    """A client's file name fit for answers and logs: printable and not endless."""
    return "".join(char for char in name if char.isprintable())[:_NAME_LIMIT]


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"The body is larger than {limit:,} bytes, the limit for this content type.")
