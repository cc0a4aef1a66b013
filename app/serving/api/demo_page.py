"""The demo page at / and the API page at /docs, served from files of this package. They load nothing from other servers."""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from app.serving.api.caching import cacheable, not_modified
from app.serving.errors import NotFound

_FOLDER = Path(__file__).parents[1] / "static"
_FILES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/docs": "docs.html",
    "/docs.css": "docs.css",
    "/docs.js": "docs.js",
}
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class _File(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def add_page(app: FastAPI) -> None:
    """Register the files of both pages. Their links are relative, so that they work under any path prefix."""
    for path, name in _FILES.items():
        app.add_api_route(path, _serve(_read(_FOLDER / name)), include_in_schema=False, methods=["GET", "HEAD"])
    modules = {file.name: _read(file) for file in (_FOLDER / "page").iterdir()}

    async def module(request: Request, name: str) -> Response:
        if name not in modules:
            raise NotFound("The page has no such file.")
        return _respond(request, modules[name])

    app.add_api_route("/page/{name}", module, include_in_schema=False, methods=["GET", "HEAD"])


def _serve(file: _File) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return _respond(request, file)

    return serve


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


def _respond(request: Request, file: _File) -> Response:
    unchanged = not_modified(request, file.etag, _HEADERS)
    return unchanged or cacheable(request, file.content, file.media_type, file.etag, _HEADERS)
