"""The list of attacks. Each is played at 10 requests a second or over 8 connections, unless its name says otherwise."""

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from common import FORM, PHOTO, form, post

from attacks import clients, files, versions
from attacks.clients import Play, at_rate, endless, in_parts, leaving, over_connections, resets, silent, slow_readers, unread
from attacks.versions import Step

MIB = 2**20
NPY = "application/x-npy"
KEY = "honest:honest-key-0123456789"
_MANY_FIELDS = b"a:\r\n" * 16_000
_LARGE_FIELDS = b"".join(b"x-%d: %b\r\n" % (index, b"y" * 300) for index in range(90))  # just within the limits of a head
_LONG_QUERY = "alpha=x&" * 255  # 2,040 bytes; 2,048 are read
_COOKIE = b'GET /livez HTTP/1.1\r\nHost: x\r\nCookie: a="' + b'\\"' * 15_000 + b'"\r\n\r\n'
_PATHS = ("a", "docs", "model", "models", "latent", "drift", "score", "embed", "readyz", "metrics", "openapi.json", "v2")
_WRONG_KEY = "X-API-Key: wrong-key-0123456789"


@dataclass(frozen=True)
class Attack:
    """One attack: how it is sent, and the server that it is sent to."""

    play: Callable[[], Play]  # built in the attacker's process
    expected: frozenset[int] = frozenset({200, 503, 504})  # statuses; 0: the connection is closed without an answer
    variables: dict[str, str] = field(default_factory=dict)  # of the server's environment
    arguments: tuple[str, ...] = ()  # of the serve command
    upload: Callable[[], bytes] | None = None  # one request of a file, whose cost is measured alone
    folder_variable: str = ""  # of the server's environment; names the folder that `beside` makes
    beside: Callable[[Path], AbstractContextManager[Step]] | None = None  # makes a folder; yields what is called each second


def array(count: int) -> bytes:
    """A .npy file of `count` images of noise."""
    out = io.BytesIO()
    np.save(out, np.random.RandomState(0).randint(0, 256, (count, 28, 28), np.uint8))
    return out.getvalue()


def _attack(play: Callable[[], Play], *expected: int, **options: Any) -> Attack:  # noqa: ANN401
    """An attack that is answered with these statuses, or with 503 or 504 where the server has too much work."""
    return Attack(play, frozenset({503, 504, *expected}), **options)


def _upload(kind: str, make: Callable[[], bytes], expected: int) -> Attack:
    def message() -> bytes:
        return post("/score", f"image/{kind}", make())

    return _attack(lambda: at_rate([message()]), expected, upload=message)


def _head(*fields: str, extra: bytes = b"") -> bytes:
    lines = ["POST /score HTTP/1.1", "Host: x", "Content-Type: image/png", *fields]
    return "\r\n".join(lines).encode() + b"\r\n" + extra + b"\r\n"


def _unfinished(body: int) -> bytes:
    return _head("Content-Length: 70000", extra=_LARGE_FIELDS) + bytes(body)


def _trailers() -> Play:
    chunk = b"%x\r\n" % (9 * MIB) + bytes(9 * MIB) + b"\r\n0\r\n"
    return endless(_head("Transfer-Encoding: chunked") + chunk, b"a:\r\n" * 4096)


def _wrong_key(body: int, extra: bytes = b"") -> Attack:
    message = _head(f"Content-Length: {body}", _WRONG_KEY, extra=extra) + bytes(body)
    return _attack(lambda: over_connections([message]), 401, variables={"ODDIGIT_API_KEYS": KEY})


def _points(count: int, point: str) -> bytes:
    return post("/decode", "application/json", f'{{"embedding": [{",".join([point] * count)}]}}'.encode())


def _form(count: int, data: bytes) -> bytes:
    return post("/score", FORM, form(*[data] * count, content_type="image/jpeg"))


def _infer(count: int) -> bytes:
    inputs = f'{{"name": "images", "datatype": "UINT8", "shape": [{count}, 784], "data": {[[0] * 784] * count}}}'
    return post("/v2/models/mnist/infer", "application/json", f'{{"inputs": [{inputs}]}}'.encode())


_LARGE_HEAD = _head("Content-Length: 9000000")

ATTACKS: dict[str, Attack] = {
    "endless trailers": _attack(_trailers, 413, 0),
    "16,000 fields, 500 held heads": _attack(lambda: silent(_head("Content-Length: 9", extra=_MANY_FIELDS), 500), 413, 0),
    "90 long fields, complete": _attack(
        lambda: over_connections([_head("Content-Length: 9", extra=_LARGE_FIELDS) + bytes(9)]), 400
    ),
    "wrong key, 90 long fields": _wrong_key(9, _LARGE_FIELDS),
    "wrong key, 1 MiB": _wrong_key(MIB),
    "TIFF tiles 5.5 KB": _upload("tiff", lambda: files.tiff_zstd_tiles(325), 413),
    "TIFF tiles 32 KB": _upload("tiff", lambda: files.tiff_tiles(1_000), 400),
    "TIFF tiles 266 KB": _upload("tiff", lambda: files.tiff_tiles(30_000), 400),
    "TIFF strips 340 KB": _upload("tiff", lambda: files.tiff_strips(30_000), 400),
    "WebP of 34 bytes": _upload("webp", files.webp_solid, 413),
    "JPEG with 60 scans": _upload("jpeg", files.jpeg_scans, 422),
    "PNG with two headers": _attack(lambda: over_connections([post("/score", "image/png", files.png_two_headers())]), 400),
    "forms of 64 TIFF directories": _attack(lambda: over_connections([_form(64, files.tiff_fields())]), 400),
    "TIFF of damaged rows": _attack(lambda: over_connections([post("/score", "image/tiff", files.tiff_damaged_rows())]), 400),
    "GIF with a small screen": _attack(lambda: over_connections([post("/score", "image/gif", files.gif_small_screen())]), 400),
    "JPEG fill bytes": _upload("jpeg", files.jpeg_fill_bytes, 400),
    "GIF comment blocks": _upload("gif", files.gif_comments, 400),
    "GIF comments": _upload("gif", lambda: files.gif_comments(many=True), 400),
    "PNG of 25 million pixels": _upload("png", files.png_large, 200),
    "PNG of 200 bytes": Attack(lambda: over_connections([post("/score", "image/png", files.png_small())])),
    "forms of 64 photographs": Attack(lambda: at_rate([_form(64, PHOTO.read_bytes())])),
    "forms of 80,000 parts": _attack(lambda: at_rate([_form(80_000, b"")]), 413),
    "long queries": _attack(lambda: over_connections([post(f"/score?{_LONG_QUERY}", "image/png", b"x")]), 422),
    "cookies": Attack(lambda: over_connections([_COOKIE])),
    "4,200 unfinished bodies": _attack(
        lambda: silent(_head("Content-Length: 70000", extra=_LARGE_FIELDS) + bytes(65_000), 4_200), 0
    ),
    "bodies that are begun": Attack(lambda: leaving(_LARGE_HEAD + bytes(256 * 1024))),
    "2,600 bodies in two parts": _attack(lambda: in_parts([_LARGE_HEAD + bytes(66_000), bytes(256 * 1024)], 2_600), 408, 0),
    "answers that are never read": Attack(lambda: unread(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100)),
    "/decode": Attack(lambda: over_connections([_points(1024, "[0.5, -3]")])),
    "/decode, 43,000 errors": _attack(lambda: at_rate([_points(43_000, "[]")]), 422),
    "/v2 infer of 1,000": Attack(lambda: over_connections([_infer(1_000)])),
    "arrays of 12,000": Attack(lambda: at_rate([post("/score", NPY, array(12_000))])),
    "arrays of 100,000": Attack(lambda: over_connections([post("/score", NPY, array(100_000))])),
    "pictures of 1,000": Attack(lambda: over_connections([post("/reconstruct", NPY, array(1_000))])),
    "slow readers of 10 MB": Attack(
        lambda: slow_readers(post("/reconstruct", NPY, array(3_300), f"Accept: {NPY}", "Connection: close"))
    ),
    "4,200 silent connections": _attack(lambda: silent(b"", 4_200), 408, 0),
    "4,200 kept connections": _attack(lambda: silent(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n", 4_200), 200, 0),
    "connections that are reset": Attack(lambda: resets(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")),
    "hostile versions": Attack(lambda: clients.nothing, folder_variable="ODDIGIT_STORE", beside=versions.hostile_store),
    "full metrics folder": _attack(
        lambda: over_connections([f"GET /{name} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for name in _PATHS]),
        *(200, 404, 405),
        arguments=("--workers", "2"),
        folder_variable="PROMETHEUS_MULTIPROC_DIR",
        beside=versions.full_folder,
    ),
}
