"""The inputs of the command `score`: files, folders, patterns, arrays and standard input, one image after the other."""

import glob
import io
import sys
from collections.abc import Iterator
from pathlib import Path

from app.detection.imaging.arrays import read_array
from app.detection.imaging.errors import ImageError
from app.scaling.files import IMAGE_SUFFIXES, walk
from app.scaling.npz import open_image_array
from app.scaling.sources import Item

STANDARD_INPUT = "-"
_SUFFIXES = IMAGE_SUFFIXES | {".npy", ".npz"}  # read from a folder


def read_all(paths: list[str], size: int, any_file: bool) -> Iterator[Item]:
    """The images of all paths, in their order. What cannot be read is an item with an error.

    `size` is the side of the images in arrays; `any_file`: read FIFOs and devices too, where a path names one.
    """
    for path in paths:
        try:
            if path == STANDARD_INPUT and sys.stdin is None:
                yield Item("standard input", None, "it is closed")
            elif path == STANDARD_INPUT:
                yield from _read_bytes("standard input", sys.stdin.buffer.read(), size)
            elif Path(path).is_dir():
                yield from _read_folder(path, size)
            elif not Path(path).exists() and glob.has_magic(path):
                yield from _read_pattern(path, size, any_file)
            else:
                yield from _read_file(path, size, any_file)
        except OSError as error:
            yield Item(path, None, _reason(error))


def _read_folder(folder: str, size: int) -> Iterator[Item]:
    errors: list[OSError] = []  # of folders inside that cannot be read
    files = sorted(name for name in walk(folder, errors.append) if Path(name).suffix.lower() in _SUFFIXES)
    for error in errors:
        yield Item(str(error.filename), None, _reason(error))
    if not files and not errors:
        yield Item(folder, None, "the folder holds no image and no array")
    for file in files:
        yield from _read_file(file, size, any_file=False)


def _read_pattern(pattern: str, size: int, any_file: bool) -> Iterator[Item]:
    """The files of a pattern that the shell did not expand; `**` matches folders."""
    files = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - a pattern may be absolute
    if not files:
        yield Item(pattern, None, "the pattern matches no file")
    for file in files:
        if not Path(file).is_dir():
            yield from _read_file(file, size, any_file)


def _read_file(path: str, size: int, any_file: bool) -> Iterator[Item]:
    file = Path(path)
    try:
        if not any_file and file.exists() and not file.is_file():
            yield Item(path, None, "not a regular file; --any-file reads it all the same")
            return
        data = file.read_bytes()
    except OSError as error:
        yield Item(path, None, _reason(error))
        return
    yield from _read_bytes(path, data, size)


def _read_bytes(name: str, data: bytes, size: int) -> Iterator[Item]:
    """The image, or the images of the array, that the content is; a name that ends as an array's does must be one."""
    try:
        if data.startswith(b"PK\x03\x04") or name.lower().endswith(".npz"):
            with open_image_array(io.BytesIO(data)) as array:
                data = array.read()
        elif not data.startswith(b"\x93NUMPY") and not name.lower().endswith(".npy"):
            yield Item(name, data)
            return
        images = read_array(data, max_images=sys.maxsize, size=size)
    except ImageError as error:
        yield Item(name, None, str(error))
        return
    yield from (Item(f"{name}[{index}]", image) for index, image in enumerate(images))


def _reason(error: OSError) -> str:
    return error.strerror or "cannot be read"
