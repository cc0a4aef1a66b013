"""The inputs of the command `score`: files, folders, patterns, arrays and standard input, one image after the other."""

import glob
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from app.detection.imaging.decode import Preprocess
    from app.detection.imaging.preprocess import PreprocessedImage

STANDARD_INPUT = "-"
_ARRAYS = (".npy", ".npz")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", *_ARRAYS}  # read from a folder


class Input(NamedTuple):
    """One image with its name, or the reason why it cannot be read."""

    name: str
    image: "PreprocessedImage | None" = None
    error: str | None = None


class Reading(NamedTuple):
    """How inputs are read."""

    preprocess: "Preprocess"
    size: int
    any_file: bool  # also FIFOs and devices among the paths themselves


def read_all(paths: list[Path], reading: Reading) -> Iterator[Input]:
    """The images of all paths, in their order."""
    for path in paths:
        if str(path) == STANDARD_INPUT:
            yield from _read_bytes("standard input", sys.stdin.buffer.read(), reading)
        elif path.is_dir():
            yield from _read_folder(path, reading)
        elif not path.exists() and glob.has_magic(str(path)):
            yield from _read_pattern(path, reading)
        else:
            yield from _read_file(path, reading)


def _read_folder(folder: Path, reading: Reading) -> Iterator[Input]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)
    if not files:
        yield Input(str(folder), error="the folder holds no image and no array")
    for file in files:
        yield from _read_file(file, reading._replace(any_file=False))


def _read_pattern(pattern: Path, reading: Reading) -> Iterator[Input]:
    """The files of a pattern that the shell did not expand; `**` matches folders."""
    files = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - a pattern may be absolute
    if not files:
        yield Input(str(pattern), error="the pattern matches no file")
    for file in files:
        if not Path(file).is_dir():
            yield from _read_file(Path(file), reading)


def _read_file(file: Path, reading: Reading) -> Iterator[Input]:
    if not reading.any_file and file.exists() and not file.is_file():
        yield Input(str(file), error="not a regular file; --any-file reads it all the same")
        return
    try:
        data = file.read_bytes()
    except OSError as error:
        yield Input(str(file), error=error.strerror or "cannot be read")
        return
    yield from _read_bytes(str(file), data, reading)


def _read_bytes(name: str, data: bytes, reading: Reading) -> Iterator[Input]:
    """The image, or the images of the array, that the content is; a name that ends as an array's does must be one."""
    from app.detection.imaging.errors import ImageError
    from app.detection.imaging.upload_warnings import decode_upload
    from app.scaling.npz import open_images

    try:
        if data.startswith(b"PK\x03\x04") or name.lower().endswith(".npz"):
            with open_images(io.BytesIO(data)) as array:
                content = array.read()
            yield from _read_array(name, content, reading)
        elif data.startswith(b"\x93NUMPY") or name.lower().endswith(".npy"):
            yield from _read_array(name, data, reading)
        else:
            yield Input(name, decode_upload(data, preprocess=reading.preprocess, size=reading.size))
    except ImageError as error:
        yield Input(name, error=str(error))


def _read_array(name: str, data: bytes, reading: Reading) -> Iterator[Input]:
    import numpy as np

    from app.detection.imaging.arrays import read_array
    from app.detection.imaging.centring import centre_images
    from app.detection.imaging.decode import looks_inverted
    from app.detection.imaging.preprocess import PreprocessedImage
    from app.detection.imaging.upload_warnings import LOOKS_INVERTED

    array = read_array(data, max_images=sys.maxsize, size=reading.size)
    images, moved, bright = array, np.zeros(len(array), bool), np.zeros(len(array), bool)
    if reading.preprocess != "none":
        (images, moved), bright = centre_images(array), looks_inverted(array)
    for index, (image, shifted, inverted) in enumerate(zip(images, moved, bright, strict=True)):
        steps, warnings = ("centred",) if shifted else (), (LOOKS_INVERTED,) if inverted else ()
        yield Input(f"{name}[{index}]", PreprocessedImage(image, steps, warnings))
