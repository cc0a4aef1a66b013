"""Files at an address: a folder, or anything that fsspec knows (s3://, hf://, memory://). fsspec is imported here alone."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.detection.drafts import write_atomically
from app.detection.extras import check_installed

if TYPE_CHECKING:
    from collections.abc import Callable


class AddressError(OSError):
    """The address cannot be used; the message says why."""


def write_file(path: Path, data: bytes) -> None:
    """Write a complete file, or none. A link is followed; a device or a FIFO is written as it is. Raises AddressError."""
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(data)
        else:
            write_atomically(Path(os.path.realpath(path)), lambda file: file.write(data))
    except OSError as error:
        raise AddressError(f"{path} cannot be written: {error.strerror}.") from error


class Address:
    """A folder, here or elsewhere, with files that are read and written whole."""

    def __init__(self, address: str) -> None:
        """Raises AddressError if the address is empty or unknown; MissingPackage if it needs fsspec, which is not installed."""
        if not address:
            raise AddressError("The address is empty.")
        self._address = address
        self._files: Any = None
        if "://" not in address:
            return
        check_installed("remote", "fsspec")
        try:
            from fsspec.core import url_to_fs

            self._files, path = url_to_fs(address)
            self._path = path.rstrip("/")
        except (ImportError, ValueError) as error:  # no such protocol, or the package for it is missing
            raise AddressError(f"{address} cannot be opened: {error}") from None

    def names(self) -> list[str]:
        """The names of the files there. Raises AddressError."""
        if self._files is None:
            folder = Path(self._address)
            return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        paths: list[str] = self._try(lambda: self._files.find(self._path, maxdepth=1))  # none where there is no such folder
        return [path.rpartition("/")[2] for path in paths]

    def read(self, name: str, max_bytes: int) -> bytes:
        """A file of at most `max_bytes`. Raises AddressError."""
        if self._files is None:
            with (Path(self._address) / name).open("rb") as file:
                data = file.read(max_bytes + 1)
        else:
            data = self._try(lambda: self._files.cat_file(f"{self._path}/{name}", 0, max_bytes + 1))
        if len(data) > max_bytes:
            raise AddressError(f"{name} at {self._address} is larger than {max_bytes:,} bytes.")
        return data

    def write(self, name: str, data: bytes) -> None:
        """A complete file, in place of one that is there. Raises AddressError."""
        if self._files is not None:
            self._try(
                lambda: (self._files.makedirs(self._path, exist_ok=True), self._files.pipe_file(f"{self._path}/{name}", data))
            )
            return
        folder = Path(self._address)
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / name, data)

    def _try(self, work: "Callable[[], Any]") -> Any:  # noqa: ANN401
        """The result of `work`, whose exceptions are those of any of fsspec's implementations."""
        try:
            return work()
        except Exception as error:
            raise AddressError(f"{self._address}: {str(error) or type(error).__name__}") from error
