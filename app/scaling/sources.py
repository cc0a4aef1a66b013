"""The images of files, folders, arrays, tar files (WebDataset) and Parquet files, divided into parts of about the same size.

A path is local, or an address of fsspec (s3://bucket/scans). The same sources give the same parts, whatever scores them.
"""

import glob
import math
import os
import re
import stat
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.arrays import read_npy_header
from app.detection.imaging.errors import ImageError
from app.scaling.npz import open_images

PART_IMAGES = 2000
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
_SUFFIXES = IMAGE_SUFFIXES | {".npy", ".npz", ".tar", ".parquet"}
_MAX_FILE_BYTES = 256 * 2**20  # of one image file
_HEADER_BYTES = 4096  # of a .npy file, more than numpy writes


class SourceError(RuntimeError):
    """A source cannot be read; the message says which and what to do."""


class Slice(NamedTuple):
    """Some images of one file, which are read together."""

    kind: str  # file, array, member (of a tar file), rows (of a Parquet file), error (a file that cannot be divided)
    path: str
    start: int = 0  # array: the first image; member: its offset in bytes; rows: the row group
    stop: int = 1  # array: after the last image; member: after its last byte; rows: the number of rows
    name: str = ""  # of a member; error: the reason
    stamp: str = ""  # size and modification time of the file, or its ETag: differs when the content of the file differs

    @property
    def images(self) -> int:
        """How many images it holds."""
        return {"array": self.stop - self.start, "rows": self.stop}.get(self.kind, 1)


class Item(NamedTuple):
    """One image: the bytes of a file, or pixels [S, S], or the reason why there are none."""

    name: str
    content: "bytes | NDArray[np.uint8] | None"
    error: str = ""


def divide(paths: Iterable[str], destination: str = "") -> Iterator[list[Slice]]:
    """The slices of all sources, in parts of about PART_IMAGES images, without the results in the folder `destination`.

    Raises SourceError.
    """
    part: list[Slice] = []
    images = 0
    for path in paths:
        for found in _slices(path, destination):
            part.append(found)
            images += found.images
            if images >= PART_IMAGES:
                yield part
                part, images = [], 0
    if part:
        yield part


def read(piece: Slice, size: int) -> Iterator[Item]:
    """The images of a slice. An unreadable one has an error."""
    if piece.kind == "error":
        yield Item(piece.path, None, piece.name)
        return
    try:
        with _open(piece.path) as file:
            if piece.kind == "file":
                yield _read_file(piece.path, file)
            elif piece.kind == "rows":
                yield from _read_rows(piece, file)
            elif piece.kind == "array":
                with _open_array(piece.path, file) as array:
                    yield from _read_array(piece, array, size)
            else:
                file.seek(piece.start)
                yield Item(f"{piece.path}/{piece.name}", file.read(piece.stop - piece.start))
    except Exception as error:
        if not _is_expected(error, piece.path):
            raise
        yield Item(piece.path, None, _error_text(error))


def _is_expected(error: Exception, path: str) -> bool:
    """Whether the error comes from a damaged or unreadable file. The file systems of fsspec raise any type of exception."""
    return "://" in path or isinstance(error, OSError | ImageError | ValueError | tarfile.TarError)


def _error_text(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def _read_file(path: str, file: BinaryIO) -> Item:
    """The whole file, after a look at its size: read(limit) alone would allocate as much as the limit, in 150 us."""
    if file.seek(0, os.SEEK_END) > _MAX_FILE_BYTES:
        return Item(path, None, f"larger than {_MAX_FILE_BYTES:,} bytes")
    file.seek(0)
    return Item(path, file.read())


def _limited(name: str, content: bytes) -> Item:
    if len(content) > _MAX_FILE_BYTES:
        return Item(name, None, f"larger than {_MAX_FILE_BYTES:,} bytes")
    return Item(name, content)


def _slices(path: str, destination: str) -> Iterator[Slice]:
    """The slices of one source: a file, a folder, a glob."""
    files = _remote_files(path) if "://" in path else ((file, _stamp(file)) for file in _local_files(path))
    for file, stamp in files:
        if destination and _is_result(file, destination):
            continue
        try:
            for found in _slices_of_file(file):
                yield found._replace(stamp=stamp)
        except Exception as error:
            if not _is_expected(error, file):
                raise
            yield Slice("error", file, name=_error_text(error), stamp=stamp)


def _is_result(file: str, destination: str) -> bool:
    """Whether the file is a part that this job, or an earlier one with the same destination, wrote."""
    folder, name = os.path.split(file.removeprefix("file://"))
    return re.fullmatch(r"part-[0-9]+\.parquet", name) is not None and os.path.realpath(folder) == os.path.realpath(destination)


def _slices_of_file(file: str) -> Iterator[Slice]:
    suffix = Path(file).suffix.lower()
    if suffix in (".npy", ".npz"):
        yield from _array_slices(file)
    elif suffix == ".tar":
        yield from _member_slices(file)
    elif suffix == ".parquet":
        yield from _row_slices(file)
    else:
        yield Slice("file", file)


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path takes longer
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _local_files(path: str) -> Iterator[str]:
    if Path(path).is_dir():
        yield from _walk(path)
    elif Path(path).exists():
        yield path
    elif glob.has_magic(path):
        found = sorted(glob.iglob(path, recursive=True))  # noqa: PTH207 - a Path would change the names
        if not found:
            raise SourceError(f"Nothing matches {path}.")
        yield from (file for file in found if not Path(file).is_dir())
    else:
        raise SourceError(f"{path} does not exist.")


def _walk(folder: str) -> Iterator[str]:
    """The image files below a folder, one folder at a time, so that memory stays small.

    Raises:
        SourceError: a folder cannot be read, or there is no file. An empty folder may be a disk that is not mounted.
    """

    def raise_error(error: OSError) -> None:
        raise SourceError(f"{error.filename} cannot be read: {error.strerror}.") from error

    empty = True
    for root, folders, files in os.walk(folder, onerror=raise_error):
        folders.sort()
        for name in sorted(files):
            if Path(name).suffix.lower() in _SUFFIXES:
                empty = False
                yield str(Path(root) / name)
    if empty:
        raise SourceError(f"{folder} holds no image, no array, no .tar and no .parquet file.")


_STAMPS = ("size", "mtime", "ETag", "etag", "LastModified", "last_modified", "updated", "md5Hash")  # of fsspec's file systems


def _remote_files(address: str) -> list[tuple[str, str]]:
    """The files of an address with their stamps, sorted."""
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(address)
        found = (files.glob if glob.has_magic(path) else files.find)(path, detail=True)
    except ImportError as error:
        raise SourceError(f'{address}: {error}; fsspec is in the extra `remote`: pip install "oddigit[remote]"') from None
    except Exception as error:  # of any of fsspec's implementations
        raise SourceError(f"{address}: {str(error) or type(error).__name__}") from None
    if not found:
        raise SourceError(f"There are no files at {address}.")
    stamps = {name: " ".join(str(about[key]) for key in _STAMPS if key in about) for name, about in found.items()}
    return sorted(
        (files.unstrip_protocol(name), stamp) for name, stamp in stamps.items() if Path(name).suffix.lower() in _SUFFIXES
    )


def _open(path: str) -> BinaryIO:
    if "://" not in path:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 - opening a FIFO waits for a writer
            raise OSError("not a regular file")
        return open(path, "rb", buffering=0)  # noqa: PTH123 - a Path takes 30 us more
    import fsspec

    return cast(BinaryIO, fsspec.open(path, "rb").open())


def _open_array(path: str, file: BinaryIO) -> AbstractContextManager[IO[bytes]]:
    """The content of an .npy, or of the array in an .npz."""
    return open_images(file) if path.lower().endswith(".npz") else nullcontext(file)


def _array_slices(path: str) -> Iterator[Slice]:
    with _open(path) as file, _open_array(path, file) as array:
        shape, _, _ = read_npy_header(array.read(_HEADER_BYTES))
    count = shape[0] if len(shape) > 1 else 1
    for start in range(0, count, PART_IMAGES):
        yield Slice("array", path, start, min(start + PART_IMAGES, count))


def _read_array(piece: Slice, file: IO[bytes], size: int) -> Iterator[Item]:
    """The images of a part of an array [N, S, S], [N, S * S], [N, 1, S, S] or [N, S, S, 1], or of one image [S, S]."""
    shape, order, offset = read_npy_header(file.read(_HEADER_BYTES))
    if order != "C":
        raise ValueError("the array is not in C order; save np.ascontiguousarray(images)")
    if shape != (size, size) and (len(shape) < 2 or math.prod(shape[1:]) != size * size):
        raise ValueError(f"the array is not [N, {size}, {size}] or [N, {size * size}]")
    count = 1 if shape == (size, size) else piece.stop - piece.start
    file.seek(offset + piece.start * size * size)
    content = file.read(count * size * size)
    if len(content) != count * size * size:
        raise ValueError("the array is shorter than its header says")
    images = np.frombuffer(content, np.uint8).reshape(count, size, size)
    yield from (Item(f"{piece.path}[{index}]", image) for index, image in enumerate(images, piece.start))


def _member_slices(path: str) -> Iterator[Slice]:
    with _open(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            if member.isfile() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                end = member.offset_data + min(member.size, _MAX_FILE_BYTES)
                yield Slice("member", path, member.offset_data, end, member.name)
            archive.members = []  # type: ignore[attr-defined]  # a list of all members would not fit into memory


def _row_slices(path: str) -> Iterator[Slice]:
    import pyarrow.parquet as pq

    with _open(path) as file:
        groups = pq.ParquetFile(file).metadata
        for group in range(groups.num_row_groups):
            yield Slice("rows", path, group, groups.row_group(group).num_rows)


def _read_rows(piece: Slice, file: BinaryIO) -> Iterator[Item]:
    """The images of a row group: of the first column of bytes, or of structs with `bytes` (Hugging Face's images)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, pre_buffer=True)
    column = _image_column(parquet.schema_arrow, pa)
    for index, value in enumerate(parquet.read_row_group(piece.start, columns=[column]).column(0)):
        content: Any = value.as_py()
        content = content["bytes"] if isinstance(content, dict) else content
        name = f"{piece.path}[{piece.start}:{index}]"
        yield Item(name, None, "the row has no image") if content is None else _limited(name, content)


def _image_column(schema: Any, pa: Any) -> str:  # noqa: ANN401 - pyarrow has no types
    for field in schema:
        if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            return str(field.name)
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    raise ValueError("the Parquet file has no column of bytes")
