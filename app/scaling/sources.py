"""The images of files, folders, arrays, tar files (WebDataset) and Parquet files, divided into parts of about the same size.

A path is local, or an address of fsspec (s3://bucket/scans). The same sources give the same parts, whatever scores them.
"""

import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.arrays import read_array, read_npy_header
from app.detection.imaging.errors import ImageError, TooManyImages
from app.scaling.files import IMAGE_SUFFIXES, list_files, open_file
from app.scaling.npz import open_image_array

PART_IMAGES = 2000
_MAX_FILE_BYTES = 256 * 2**20  # of one image file
_HEADER_BYTES = 4096  # of a .npy file, more than numpy writes
_ROWS_AT_A_TIME = 100  # of a Parquet file, in memory
_GROUP_PARTS = 16  # parts of a row group at most: each part also reads all rows of the group before it
_COLUMN_BYTES_AT_A_TIME = 2**20  # of a Parquet file: a row group may be larger than memory


class Slice(NamedTuple):
    """Some images of one file, which are read together."""

    kind: str  # file, array, member (of a tar file), rows (of a Parquet file), error (a file that cannot be divided)
    path: str
    start: int = 0  # array: the first image; rows: the first row of the group; member: its offset in bytes
    stop: int = 1  # array: after the last image; rows: after the last row; member: after its last byte
    name: str = ""  # of a member; rows: the number of the row group; error: the reason
    stamp: str = ""  # size and modification time of the file, or its ETag: differs when the content of the file differs

    @property
    def images(self) -> int:
        """How many images it holds."""
        return self.stop - self.start if self.kind in ("array", "rows") else 1


class Item(NamedTuple):
    """One image: the bytes of a file, or pixels [S, S], or the reason why there are none."""

    name: str
    content: "bytes | NDArray[np.uint8] | None"
    error: str = ""
    is_unread: bool = False  # reading failed; it may succeed in another run


def divide(paths: Iterable[str], destination: str = "", size: int = 28) -> Iterator[list[Slice]]:
    """The slices of all sources, in parts of about PART_IMAGES images, without the results in the folder `destination`.

    A large row group of a Parquet file has longer parts. `size` is the side of the images in arrays. Raises SourceError.
    """
    part: list[Slice] = []
    images = 0
    for path in paths:
        for found in _slices(path, destination, size):
            part.append(found)
            images += found.images
            if images >= PART_IMAGES:
                yield part
                part, images = [], 0
    if part:
        yield part


def read(part: Iterable[Slice], size: int) -> Iterator[Item]:
    """The images of the slices. An unreadable one has an error. A file stays open for its consecutive slices."""
    with ExitStack() as stack:
        opened = ""
        for piece in part:
            if piece.kind == "error":
                yield Item(piece.path, None, piece.name)
                continue
            try:
                if piece.path != opened:
                    stack.close()
                    file, opened = stack.enter_context(open_file(piece.path)), piece.path
                yield from _read_slice(piece, file, size)
            except Exception as error:
                if not _is_expected(error, piece.path):
                    raise
                is_unread = "://" in piece.path or isinstance(error, OSError)
                yield Item(piece.path, None, _error_text(error), is_unread=is_unread)
                opened = ""


def _read_slice(piece: Slice, file: BinaryIO, size: int) -> Iterator[Item]:
    if piece.kind == "file":
        yield _read_file(piece.path, file)
    elif piece.kind == "rows":
        yield from _read_rows(piece, file)
    elif piece.kind == "array":
        file.seek(0)
        with _open_array(piece.path, file) as array:
            yield from _read_array(piece, array, size)
    else:
        file.seek(piece.start)
        yield Item(f"{piece.path}/{piece.name}", file.read(piece.stop - piece.start))


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


def _slices(path: str, destination: str, size: int) -> Iterator[Slice]:
    """The slices of one source: a file, a folder, a glob."""
    for file, stamp in list_files(path):
        if destination and _is_result(file, destination):
            continue
        try:
            for found in _slices_of_file(file, size):
                yield found._replace(stamp=stamp)
        except Exception as error:
            if not _is_expected(error, file):
                raise
            yield Slice("error", file, name=_error_text(error), stamp=stamp)


def _is_result(file: str, destination: str) -> bool:
    """Whether the file is a part that this job, or an earlier one with the same destination, wrote."""
    folder, name = os.path.split(file.removeprefix("file://"))
    return re.fullmatch(r"part-[0-9]+\.parquet", name) is not None and os.path.realpath(folder) == os.path.realpath(destination)


def _slices_of_file(file: str, size: int) -> Iterator[Slice]:
    suffix = Path(file).suffix.lower()
    if suffix in (".npy", ".npz"):
        yield from _array_slices(file, size)
    elif suffix == ".tar":
        yield from _member_slices(file)
    elif suffix == ".parquet":
        yield from _row_slices(file)
    else:
        yield Slice("file", file)


def _open_array(path: str, file: BinaryIO) -> AbstractContextManager[IO[bytes]]:
    """The content of an .npy, or of the array in an .npz."""
    return open_image_array(file) if path.lower().endswith(".npz") else nullcontext(file)


def _array_slices(path: str, size: int) -> Iterator[Slice]:
    with open_file(path) as file, _open_array(path, file) as array:
        count, _ = _read_array_header(array, size)
    for start in range(0, count, PART_IMAGES):
        yield Slice("array", path, start, min(start + PART_IMAGES, count))


def _read_array_header(file: IO[bytes], size: int) -> tuple[int, int]:
    """The number of images of an array, and the offset of the first one in bytes. Raises the errors of `read_array`."""
    header = file.read(_HEADER_BYTES)
    with suppress(TooManyImages):  # of 0: an array of the right type and shape
        read_array(header, max_images=0, size=size)
    shape, order, offset = read_npy_header(header)
    if order != "C":
        raise ValueError("the array is not in C order; save np.ascontiguousarray(images)")
    return 1 if shape == (size, size) else shape[0], offset


def _read_array(piece: Slice, file: IO[bytes], size: int) -> Iterator[Item]:
    """The images of a part of an array."""
    _, offset = _read_array_header(file, size)
    file.seek(offset + piece.start * size * size)
    content = file.read(piece.images * size * size)
    if len(content) != piece.images * size * size:
        raise ValueError("the array is shorter than its header says")
    images = np.frombuffer(content, np.uint8).reshape(piece.images, size, size)
    yield from (Item(f"{piece.path}[{index}]", image) for index, image in enumerate(images, piece.start))


def _member_slices(path: str) -> Iterator[Slice]:
    """The images of a tar file, or of several that are joined. Raises ReadError where it is damaged or truncated."""
    with open_file(path) as file:
        block = b"first"  # not empty: there is a first archive
        while block:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for member in archive:
                    if not member.isdir() and Path(member.name).suffix.lower() in IMAGE_SUFFIXES:
                        yield _member_slice(path, member)
                    archive.members = []  # type: ignore[attr-defined]  # a list of all members would not fit into memory
                file.seek(archive.offset)  # of the block that ended the loop: tarfile takes a damaged header for the end
            block = file.read(tarfile.BLOCKSIZE)
            if not block or any(block):
                raise tarfile.ReadError(f"the tar file is damaged or truncated at byte {archive.offset:,}")
            while block and not any(block):
                block = file.read(tarfile.BLOCKSIZE)
            file.seek(-len(block), os.SEEK_CUR)


def _member_slice(path: str, member: tarfile.TarInfo) -> Slice:
    if not member.isfile() or member.issparse():
        reason = "a link or a sparse file; pack it with tar --dereference --hard-dereference"
        return Slice("error", f"{path}/{member.name}", name=reason)
    return Slice("member", path, member.offset_data, member.offset_data + min(member.size, _MAX_FILE_BYTES), member.name)


def _row_slices(path: str) -> Iterator[Slice]:
    import pyarrow.parquet as pq

    with open_file(path) as file:
        groups = pq.ParquetFile(file).metadata
        for group in range(groups.num_row_groups):
            count = groups.row_group(group).num_rows
            step = max(PART_IMAGES, -(-count // _GROUP_PARTS))
            for start in range(0, count, step):
                yield Slice("rows", path, start, min(start + step, count), str(group))


def _read_rows(piece: Slice, file: BinaryIO) -> Iterator[Item]:
    """The images of rows of a group: of the first column of bytes, or of structs with `bytes` (Hugging Face's images)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, buffer_size=_COLUMN_BYTES_AT_A_TIME, pre_buffer=False)
    column = _image_column(parquet.schema_arrow, pa)
    batches = parquet.iter_batches(_ROWS_AT_A_TIME, row_groups=[int(piece.name)], columns=[column])
    arrays = (batch.column(0) for batch in batches)
    rows = ((array, row) for array in arrays for row in range(len(array)))  # the values of skipped rows would take 2 us each
    for index, (array, row) in enumerate(islice(rows, piece.start, piece.stop), piece.start):
        content: Any = array[row].as_py()
        content = content["bytes"] if isinstance(content, dict) else content
        name = f"{piece.path}[{piece.name}:{index}]"
        yield Item(name, None, "the row has no image") if content is None else _limited(name, content)


def _image_column(schema: Any, pa: Any) -> str:  # noqa: ANN401 - pyarrow has no types
    for field in schema:
        kind = field.type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return str(field.name)
    raise ValueError("the Parquet file has no column of bytes")
