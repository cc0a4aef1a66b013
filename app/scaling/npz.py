"""The array of images in an .npz archive, in parts: the archive may be larger than memory."""

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO

from app.detection.imaging.errors import UndecodableImage

_NUMPY_WRITES = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@contextmanager
def open_image_array(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Open the array `images` of an .npz, or its only array, as a file in .npy format. Closed at the end of the `with` block.

    Raises UndecodableImage, at the start or inside of the block: the archive is damaged, encrypted, packed in a way that numpy
    does not write, or holds no such array.
    """
    with ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(file))
            array = stack.enter_context(archive.open(_member(archive)))
        except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError) as error:
            if isinstance(error, UndecodableImage):
                raise
            raise _damaged(error) from None
        try:
            yield array
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise _damaged(error) from None


def _member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    names = archive.namelist()
    name = "images.npy" if "images.npy" in names else names[0] if len(names) == 1 else None
    if name is None:
        held = ", ".join(each.removesuffix(".npy") for each in names[:10]) or "nothing"
        raise UndecodableImage(f"the .npz holds no array 'images'; it holds {held}")
    member = archive.getinfo(name)
    if member.compress_type not in _NUMPY_WRITES:  # others raise errors that are not caught here
        raise UndecodableImage("the .npz is compressed in a way that numpy does not write")
    return member


def _damaged(error: Exception) -> UndecodableImage:
    if "encrypted" in str(error):
        return UndecodableImage("the .npz is encrypted; save it without a password")
    return UndecodableImage(f"a damaged .npz: {error}")
