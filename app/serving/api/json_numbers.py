"""Large arrays of numbers in JSON, parsed in pieces: a parser keeps the interpreter's lock until it returns.

1,000 images are 2.8 MB of JSON, which one call parses in 50 ms; a piece takes 1 ms.
"""

import re
from collections.abc import Iterator
from typing import Any

from pydantic_core import from_json

PIECE_BYTES = 32 * 1024

_MAX_ELEMENT_BYTES = 256 * 1024  # of the outermost array: an image of 100 x 100 floating-point numbers
_MAX_KEYS = 16  # occurrences of "data" that are looked at
_KEY = b'"data"'
_DATA = re.compile(rb'"data"\s{0,64}:\s{0,64}\[')  # in valid JSON, outside of a text: a raw quote ends any text
_OPENING = re.compile(rb"(?:\s{0,64}\[){1,5}")
_PLACEHOLDER = b"[0]"


def cut_data(body: bytes) -> tuple[bytes, bytes | None]:
    """Cut the array of numbers that is the only value of a key `data` out of a JSON text.

    Returns the text with another array in its place, and the array; or the text itself and None where there is none such.
    """
    starts = _find_arrays(body)
    if len(starts) != 1:
        return body, None
    ends = (body.find(mark, starts[0]) for mark in (b'"', b"}"))  # numbers and brackets have neither
    end = body.rfind(b"]", starts[0], min((end for end in ends if end >= 0), default=len(body))) + 1
    if not end:
        return body, None
    return body[: starts[0]] + _PLACEHOLDER + body[end:], body[starts[0] : end]


def _find_arrays(body: bytes) -> list[int]:
    """The positions of arrays that are values of a key `data`. A search by a regular expression takes 15 times as long."""
    starts: list[int] = []
    position = body.find(_KEY)
    for _ in range(_MAX_KEYS):
        if position < 0:
            return starts
        found = _DATA.match(body, position)
        if found and body[position - 1 : position] != b"\\":
            starts.append(found.end() - 1)
        position = body.find(_KEY, position + len(_KEY))
    return []


def parse_in_pieces(array: bytes) -> Iterator[tuple[bytes, list[Any]]]:
    """The elements of a JSON array, flat or nested, in lists from about PIECE_BYTES of text, and that text.

    Raises ValueError, also for an element that is too long to be an image.
    """
    opening = _OPENING.match(array)
    inner = opening.group().count(b"[") - 1 if opening else 0
    comma = re.compile(rb"(?:\]\s*){%d},(?=(?:\s*\[){%d})" % (inner, inner))  # between two elements of the outermost array
    first = start = array.index(b"[") + 1
    end = len(array) - 1
    while True:
        last = min(end, start + PIECE_BYTES + _MAX_ELEMENT_BYTES)
        found = comma.search(array, start + PIECE_BYTES, last)
        if not found and last < end:
            raise ValueError("an element is too long")
        piece = array[start : found.end() - 1 if found else end]
        if start > first and not piece.strip():
            raise ValueError("an element is missing")
        yield piece, from_json(b"[%b]" % piece)
        if not found:
            return
        start = found.end()
