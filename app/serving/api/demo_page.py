"""The demo page at / and the API page at /docs, served from files of this package. They load nothing from other servers."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import FileResponse

_FOLDER = Path(__file__).parents[1] / "static"
_FILES = {
    "/": "index.html",
    "/page.css": "page.css",
    "/page.js": "page.js",
    "/docs": "docs.html",
    "/docs.css": "docs.css",
    "/docs.js": "docs.js",
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def add_page(app: FastAPI) -> None:
    """Register the files of both pages. Their links are relative, so that they work under any path prefix."""
    for path, name in _FILES.items():
        app.add_api_route(path, _serve(_FOLDER / name), include_in_schema=False, methods=["GET", "HEAD"])


def _serve(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def serve() -> FileResponse:
        return FileResponse(file, headers=_HEADERS)

    return serve
