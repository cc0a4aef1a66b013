"""The demo page at / and the API page at /docs, served from files of this package. They load nothing from other servers."""

import hashlib
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
    files = {path: _read(_FOLDER / name) for path, name in _FILES.items()}
    files |= {f"/page/{file.name}": _read(file) for file in (_FOLDER / "page").glob("*.js")}

    async def serve(request: Request) -> Response:
        path = request.scope["route"].path.format_map(request.path_params)
        if path not in files:
            raise NotFound("The page has no such file.")
        unchanged = not_modified(request, files[path].etag, _HEADERS)
        return unchanged or cacheable(request, files[path].content, files[path].media_type, files[path].etag, _HEADERS)

    for path in (*_FILES, "/page/{name}"):
        app.add_api_route(path, serve, include_in_schema=False, methods=["GET", "HEAD"])


def _read(path: Path) -> _File:
    content = path.read_bytes()
    return _File(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')
