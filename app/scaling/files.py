"""The files of a source: a file, a folder, a pattern, or an address of fsspec (s3://bucket/scans)."""

import glob
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from app.detection.extras import check_installed

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_SUFFIXES = IMAGE_SUFFIXES | {".npy", ".npz", ".tar", ".parquet"}
_STAMPS = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "md5Hash")  # of fsspec's file systems


class SourceError(RuntimeError):
    """A source cannot be read; the message says which and what to do."""


def list_files(source: str) -> Iterator[tuple[str, str]]:
    """The files of a source, each with its stamp: size and modification time, or ETag. Raises SourceError."""
    if "://" in source:
        yield from _remote_files(source)
    else:
        yield from ((file, _stamp(file)) for file in _local_files(source))


def open_file(path: str) -> BinaryIO:
    """Open a regular file, or a file at an address. The file systems of fsspec raise any type of exception."""
    if "://" not in path:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - opening a FIFO waits for a writer
            raise OSError("not a regular file")
        return open(path, "rb", buffering=0)  # noqa: PTH123 - a Path takes 30 us more
    import fsspec

    return cast(BinaryIO, fsspec.open(path, "rb").open())


def walk(folder: str, onerror: Callable[[OSError], object]) -> Iterator[str]:
    """The files below a folder, one folder at a time, so that memory stays small. Links are followed, each folder once."""
    visited = set()
    for root, folders, files in os.walk(folder, onerror=onerror, followlinks=True):
        status = os.stat(root)  # noqa: PTH116 - a Path takes longer
        if (status.st_dev, status.st_ino) in visited:
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (str(Path(root) / name) for name in sorted(files))


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path takes longer
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _local_files(path: str) -> Iterator[str]:
    if Path(path).is_dir():
        yield from _files_of_folder(path)
    elif Path(path).exists():
        yield path
    elif glob.has_magic(path):
        found = sorted(glob.iglob(path, recursive=True))  # noqa: PTH207 - a Path would change the names
        if not found:
            raise SourceError(f"Nothing matches {path}.")
        yield from (file for file in found if not Path(file).is_dir())
    else:
        raise SourceError(f"{path} does not exist.")


def _files_of_folder(folder: str) -> Iterator[str]:
    """The image files below a folder.

    Raises:
        SourceError: a folder cannot be read, or there is no file. An empty folder may be a disk that is not mounted.
    """

    def raise_error(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}.") from error

    empty = True
    for file in walk(folder, raise_error):
        if Path(file).suffix.lower() in _SUFFIXES:
            empty = False
            yield file
    if empty:
        raise SourceError(f"{folder} holds no image, no array, no .tar and no .parquet file.")


def _remote_files(address: str) -> list[tuple[str, str]]:
    """The files of an address with their stamps, sorted. Raises SourceError, MissingPackage."""
    check_installed("remote", "fsspec")
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(address)
        found = (files.glob if glob.has_magic(path) else files.find)(path, detail=True)
    except Exception as error:  # of any of fsspec's implementations
        raise SourceError(f"{address}: {str(error) or type(error).__name__}") from None
    if not found:
        raise SourceError(f"There are no files at {address}.")
    stamps = {name: " ".join(str(about[key]) for key in _STAMPS if key in about) for name, about in found.items()}
    return sorted(
        (files.unstrip_protocol(name), stamp) for name, stamp in stamps.items() if Path(name).suffix.lower() in _SUFFIXES
    )
