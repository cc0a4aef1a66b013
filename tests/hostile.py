"""Uploads that no honest client sends, each with the statuses that the contract allows for it."""

import io
import pickle
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image
from strokes import encoded, npy, png, stroke_images

NPY, FORM, PNG = "application/x-npy", "multipart/form-data; boundary=line", "image/png"


class Upload(NamedTuple):
    """A request that could be sent to any of the three questions."""

    label: str
    status: int
    content_type: str
    body: bytes
    query: str = ""


def form(*parts, boundary="line"):
    """A multipart body; each part is (head, data), its head without the line ends."""
    lines = [f"--{boundary}\r\n".encode() + head + b"\r\n\r\n" + data + b"\r\n" for head, data in parts]
    return b"".join(lines) + f"--{boundary}--\r\n".encode()


def file_part(name, data, content_type="image/png"):
    """A part named `file`, as browsers write it."""
    disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"'
    return f"{disposition}\r\nContent-Type: {content_type}".encode(), data


def uploads():
    """The lot."""
    return [*_bodies(), *_pictures(), *_arrays(), *_forms(), *_queries()]


def truncated():
    """Each accepted format, cut in the middle."""
    image = Image.fromarray(stroke_images(1, seed=0, size=64)[0]).convert("RGB")
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        whole = encoded(image, kind)
        yield kind, whole[: len(whole) // 2]


def animation(frames):
    """A GIF of these grey frames."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    return encoded(first, "GIF", save_all=True, append_images=others, duration=100)


def png_chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def huge_png(width=60_000, height=60_000):
    """A PNG whose header promises more pixels than anyone has."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")


def bomb_png(chunk=b"zTXt", megabytes=64):
    """A good PNG with a text chunk that unpacks to `megabytes`."""
    whole = png(stroke_images(1, seed=0)[0])
    packed = zlib.compress(bytes(megabytes * 2**20), 9)
    between = b"Comment\x00\x00" if chunk != b"iTXt" else b"Comment\x00\x01\x00en\x00\x00"
    return whole[:33] + png_chunk(chunk, between + packed) + whole[33:]


def lying_npy(shape, data=b"\x00" * 784, descr="|u1", order="False"):
    """A .npy whose header says anything."""
    header = f"{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header) + 1) + header + b"\n" + data


class Trap:
    """Unpickled, it would raise; the server must not find out."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def _bodies():
    noise = np.random.RandomState(0).bytes(2**20)
    for kind in (PNG, "image/jpeg", "image/webp", "image/bmp", "image/gif", "image/tiff", NPY, FORM):
        yield Upload(f"empty-{kind.partition(';')[0]}", 400, kind, b"")
        yield Upload(f"noise-{kind.partition(';')[0]}", 400, kind, noise)
    good = png(stroke_images(1, seed=0)[0])
    for kind in (
        "",
        "text/plain",
        "application/json",
        "image/svg+xml",
        "image/*",
        "é",
        "multipart/mixed",
    ):
        yield Upload(f"type-{kind or 'none'}", 415, kind, good)


def _pictures():
    for kind, body in truncated():
        yield Upload(f"truncated-{kind}", 400, f"image/{kind.lower()}", body)
    yield Upload("header-60000x60000", 413, PNG, huge_png())
    yield Upload("header-0x0", 400, PNG, huge_png(0, 0))
    yield Upload("header-2^31-1", 413, PNG, huge_png(2**31 - 1, 2**31 - 1))
    for chunk in (b"zTXt", b"iTXt", b"iCCP"):
        yield Upload(f"bomb-{chunk.decode()}", 400, PNG, bomb_png(chunk))
    yield Upload("octets", 200, "application/octet-stream", png(stroke_images(1, seed=0)[0]))
    yield Upload("1x1", 200, PNG, png(np.zeros((1, 1), np.uint8)))
    yield Upload("5000x10", 200, PNG, png(np.tile(np.uint8([0, 255]), (10, 2500))))
    yield Upload("10x5000", 200, PNG, png(np.tile(np.uint8([[0], [255]]), (2500, 10))))
    yield Upload("animation", 200, "image/gif", animation(stroke_images(3, seed=0)))
    for label, body in {
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="28" height="28"><rect width="9" height="9"/></svg>',
        "svg-declared": b'<?xml version="1.0"?>\n<!DOCTYPE svg [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "pdf": b"%PDF-1.7\n",
        "heic": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    }.items():
        yield Upload(label, 415, PNG, body)
    yield Upload("signature-alone", 400, PNG, b"\x89PNG\r\n\x1a\n")
    yield Upload("riff-alone", 400, "image/webp", b"RIFF\x00\x00\x00\x00WEBP")
    yield Upload("tiff-of-itself", 400, "image/tiff", b"II*\x00\x08\x00\x00\x00" + bytes(6))


def _arrays():
    whole = stroke_images(4, seed=0)
    out = io.BytesIO()
    np.savez(out, whole)
    for label, body in {
        "pickled": npy(np.array([Trap()], object), allow_pickle=True),
        "bare-pickle": pickle.dumps(Trap()),
        "zipped": out.getvalue(),
        "wrong-shape": npy(whole[:, :14]),
        "one-axis": npy(whole.ravel()),
        "no-axis": npy(np.uint8(3)),
        "no-images": npy(whole[:0]),
        "float64": npy(whole / 255),
        "nan": npy(np.full((1, 28, 28), np.nan, np.float32)),
        "int64": npy(whole.astype(np.int64)),
        "signed": npy(whole.astype(np.int8)),
        "bool": npy(whole > 9),
        "text": npy(np.full((1, 28, 28), "x")),
        "promises-more": lying_npy("(5, 28, 28)"),
        "promises-less": lying_npy("(1, 28, 28)", bytes(784 * 2)),
        "promises-nothing": lying_npy("(0, 28, 28)"),
        "negative": lying_npy("(-1, 28, 28)"),
        "shape-is-code": lying_npy("__import__('os')"),
        "header-is-longer": b"\x93NUMPY\x01\x00\xff\xff{}",
        "header-of-4-GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
        "version-9": b"\x93NUMPY\x09\x00" + lying_npy("(1, 28, 28)")[8:],
        "a-png": png(whole[0]),
    }.items():
        yield Upload(f"npy-{label}", 400, NPY, body)
    yield Upload("npy-four-axes", 200, NPY, npy(whole[:, None]))
    yield Upload("npy-promises-100001", 413, NPY, lying_npy("(100001, 28, 28)"))
    yield Upload("npy-promises-10^12", 413, NPY, lying_npy("(1000000000000, 28, 28)"))
    yield Upload("npy-promises-10^60", 413, NPY, lying_npy(f"(1{'0' * 50}, 28, 28)"))
    yield Upload("npy-fortran", 200, NPY, npy(np.asfortranarray(whole)))


def _forms():
    good = png(stroke_images(1, seed=0)[0])
    part = file_part("a.png", good)
    yield Upload("form-without-parts", 400, FORM, b"--line--\r\n")
    yield Upload("form-without-files", 400, FORM, form((b'Content-Disposition: form-data; name="other"', good)))
    yield Upload("form-of-1000-parts", 413, FORM, form(*[part] * 1000))
    yield Upload("form-of-65-parts", 413, FORM, form(*[part] * 65))
    yield Upload("form-of-1000-other-parts", 413, FORM, form(*[(b'Content-Disposition: form-data; name="x"', b"")] * 1000))
    yield Upload("form-wrong-boundary", 400, FORM, form(part, boundary="another"))
    yield Upload("form-no-boundary", 400, "multipart/form-data", form(part))
    yield Upload("form-empty-boundary", 400, 'multipart/form-data; boundary=""', form(part))
    yield Upload("form-endless-boundary", 400, f"multipart/form-data; boundary={'x' * 5000}", form(part))
    yield Upload("form-unfinished", 400, FORM, form(part)[: -len(b"--line--\r\n") - 40])
    yield Upload("form-head-without-end", 400, FORM, b"--line\r\n" + b"X-A: b\r\n" * 10_000)
    yield Upload("form-head-of-1-MB", 400, FORM, form((b"X: " + b"y" * 2**20, good)))
    yield Upload("form-head-with-nul", 400, FORM, form((b'Content-Disposition: form-data; name="file\x00"', good)))
    yield Upload("form-all-broken", 400, FORM, form(file_part("a", b"no"), file_part("b", b"")))
    yield Upload("form-all-unsupported", 415, FORM, form(file_part("a", b"<svg/>"), file_part("b", good, "text/html")))
    yield Upload("form-all-huge", 413, FORM, form(file_part("a", huge_png()), file_part("b", huge_png())))
    yield Upload("form-differently-bad", 400, FORM, form(file_part("a", huge_png()), file_part("b", b"<svg/>")))
    yield Upload("form-in-a-form", 400, FORM, form(file_part("a", form(part))))


def _queries():
    good = png(stroke_images(1, seed=0)[0])
    for alpha in (
        "0",
        "1",
        "-1",
        "2",
        "nan",
        "inf",
        "-inf",
        "",
        "ten",
        "0x1",
        "1e-400",
        "1e400",
        "0.05;",
        "1e-9",
        "5e-324",
        "1e-310",
        "%00",
        "%ff",
        "0,05",
    ):
        yield Upload(f"alpha={alpha}", 422, PNG, good, f"?alpha={alpha}")
    for preprocess in ("", "AUTO", "digits", "none%00", "../none", "%ff", "auto,none", "x" * 2000):
        yield Upload(f"preprocess={preprocess[:20]}", 422, PNG, good, f"?preprocess={preprocess}")
    yield Upload("unknown-parameter", 422, PNG, good, "?colour=red&&=&%zz=%ff&alpha=0.05")
    yield Upload("endless-query", 422, PNG, good, f"?preprocess={'x' * 3000}")
