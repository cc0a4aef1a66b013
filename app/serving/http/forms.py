"""Forms: the bytes of a multipart/form-data body in, its files with their names and types out."""

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from app.serving.errors import InvalidBody, TooLarge

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_NAME_LENGTH = 255
_PIECE_BYTES = 256 * 1024  # that are parsed at once
_MAX_TYPE_LENGTH = 1024  # of a Content-Type or Content-Disposition header


class Part(NamedTuple):
    """One uploaded file: its name as the client gave it, its declared type ("" where none), its bytes."""

    name: str
    content_type: str
    data: bytes


def parse_form(
    body: bytes | memoryview, content_type: str, *, max_parts: int, pause: Callable[[], None] | None = None
) -> list[Part]:
    """The parts named `file` of a multipart/form-data body, in order. `pause` is called before each piece of the body.

    Raises:
        InvalidBody: the form is malformed or has no such part.
        TooLarge: it has more than `max_parts` parts.
    """
    if len(content_type) > _MAX_TYPE_LENGTH:  # parsing 32 KiB takes 80 ms
        raise InvalidBody(f"The content type is longer than {_MAX_TYPE_LENGTH:,} characters.")
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidBody("The multipart content type names no boundary.")
    reader = _FormReader(max_parts)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        for start in range(0, len(body), _PIECE_BYTES):
            if pause is not None:
                pause()
            parser.write(bytes(body[start : start + _PIECE_BYTES]))
        parser.finalize()
    except (FormParserError, ValueError):
        raise InvalidBody("The form is malformed, or its boundary is not the one that the content type names.") from None
    if reader.part_count and not reader.is_complete:
        raise InvalidBody("The form ends before its last boundary; send it whole.")
    if not reader.parts:
        raise InvalidBody("The form has no part named 'file'; send one as `curl -F file=@seven.png`.")
    return reader.parts


class _FormReader:
    """Collects the parts that the multipart parser reports."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.part_count = 0  # of all parts, files or not
        self.is_complete = False  # whether the last boundary was read
        self._max_parts = max_parts
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
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        self.part_count += 1
        if self.part_count > self._max_parts:
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
        disposition = self._headers.get(b"content-disposition", b"")[:_MAX_TYPE_LENGTH]
        _, options = parse_options_header(disposition)
        if options.get(b"name") != b"file":
            return
        name = printable_name(_file_name(disposition, options)) or f"file {len(self.parts) + 1}"
        content_type = self._headers.get(b"content-type", b"").decode("latin-1")
        self.parts.append(Part(name, media_type(content_type), b"".join(self._data)))

    def _complete(self) -> None:
        self.is_complete = True


_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')
_EXTENDED_NAME = re.compile(rb";\s*filename\*\s*=\s*utf-8'[^']*'([^;\s]*)", re.IGNORECASE)


def _file_name(disposition: bytes, options: Mapping[bytes, bytes]) -> str:
    """`filename*` as RFC 8187 writes names that are not ASCII, which python-multipart leaves out; else `filename`."""
    if extended := _EXTENDED_NAME.search(_QUOTED.sub(b'""', disposition)):
        return unquote(extended[1].decode("latin-1"), errors="replace")
    return options.get(b"filename", b"").decode("utf-8", "replace")


def media_type(content_type: str) -> str:
    """The media type of a Content-Type header, lower case, without parameters: `image/png` for `Image/PNG; q=1`."""
    return content_type.partition(";")[0].strip().lower()


def printable_name(name: str) -> str:
    """A client's file name for responses and logs: its printable characters, at most 255."""
    return "".join(char for char in name if char.isprintable())[:_MAX_NAME_LENGTH]
