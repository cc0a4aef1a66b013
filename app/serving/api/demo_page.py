"""The demo page and its two files, from this package; nothing is loaded from anywhere else."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response

_FOLDER = Path(__file__).parents[1] / "static"
_FILES = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Serve the page at /."""
    for path in _FILES:
        app.add_api_route(path, _file, include_in_schema=False, methods=["GET", "HEAD"])


async def _file(request: Request) -> Response:
    return FileResponse(_FOLDER / _FILES[request.scope["path"]], headers=_HEADERS)
