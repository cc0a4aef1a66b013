"""Responses that clients keep: with an ETag, compressed for clients that accept gzip, and not sent again unchanged."""

import gzip
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

_MAX_LIST_LENGTH = 1000  # characters of a header's list that are read

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has the current version."}}


def not_modified(request: Request, etag: str, headers: Mapping[str, str] | None = None) -> Response | None:
    """The 304 for a client that has the version `etag`, else None."""
    if {"*", etag}.isdisjoint(entry.removeprefix("W/") for entry in _entries(request, "if-none-match")):
        return None
    return Response(status_code=304, headers=_caching_headers(etag, headers))


def cacheable(request: Request, body: bytes, media_type: str, etag: str, headers: Mapping[str, str] | None = None) -> Response:
    """`body`, compressed if the client accepts gzip, to be checked with `etag` before each use."""
    return compressed(request, body, media_type, _caching_headers(etag, headers))


def compressed(request: Request, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """`body`, compressed if the client accepts gzip."""
    sent = {**(headers or {}), "Vary": "Accept-Encoding"}
    if accepts_gzip(request):
        body, sent["Content-Encoding"] = gzip.compress(body, compresslevel=6, mtime=0), "gzip"
    return Response(body, media_type=media_type, headers=sent)


def accepts_gzip(request: Request) -> bool:
    """Whether the Accept-Encoding header lists gzip with a weight above 0."""
    for entry in _entries(request, "accept-encoding"):
        name, _, parameters = entry.lower().partition(";")
        if name.strip() == "gzip":
            return "".join(parameters.split()).rstrip("0.") != "q="
    return False


def _entries(request: Request, header: str) -> list[str]:
    """The entries of a header that holds a list, and may be repeated."""
    return [entry.strip() for entry in ",".join(request.headers.getlist(header))[:_MAX_LIST_LENGTH].split(",")]


def _caching_headers(etag: str, headers: Mapping[str, str] | None) -> dict[str, str]:
    return {"Cache-Control": "no-cache", "Vary": "Accept-Encoding", **(headers or {}), "ETag": etag}
