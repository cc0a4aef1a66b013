"""prometheus_client's files under PROMETHEUS_MULTIPROC_DIR, made safe against a full disk.

prometheus_client maps files with holes into memory. When the disk is full, the first write to a hole kills the process with
SIGBUS. Here each file is written in full before it is mapped. Where that fails, the process keeps its numbers in memory of
its own: in /metrics they are missing, or stand still if the file exists but cannot grow. Nothing else happens.

Names of prometheus_client that its documentation does not promise, used in this file: `values.MmapedDict`, the class that is
replaced, with its attributes `_f`, `_m`, `_used`, `_capacity`, `_positions` and its method `_init_value`.
"""

import logging
import mmap
from pathlib import Path
from typing import Any

from prometheus_client import values
from prometheus_client.mmap_dict import MmapedDict

logger = logging.getLogger(__name__)

_FIRST_BYTES = 64 * 1024
_ENTRY_BYTES = 40  # of an entry beside its key: length, padding, value, time


class ReservedMmapedDict(MmapedDict):
    """A `MmapedDict` whose file has no holes; without a file where the disk has no room for it."""

    _f: Any  # the open file; None without one

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            try:
                _reserve(Path(filename), _FIRST_BYTES)
            except OSError as error:
                _log(error)
                self._f, self._m = None, mmap.mmap(-1, _FIRST_BYTES)
                self._used, self._capacity, self._positions = 8, _FIRST_BYTES, {}
                return
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]

    def _init_value(self, key: str) -> None:
        needed = self._used + len(key.encode()) + _ENTRY_BYTES
        while needed > self._capacity:
            self._grow()
        super()._init_value(key)  # type: ignore[no-untyped-call]

    def _grow(self) -> None:
        """Double the capacity of the file. Without room on the disk, go on in memory, which other processes do not see."""
        capacity = 2 * self._capacity
        if self._f is not None:
            try:
                _reserve(Path(self._f.name), capacity)
                self._m, self._capacity = mmap.mmap(self._f.fileno(), capacity), capacity
                return
            except OSError as error:
                _log(error)
                self._f.close()
                self._f = None
        copy = mmap.mmap(-1, capacity)
        copy[: self._used] = self._m[: self._used]
        self._m, self._capacity = copy, capacity


def keep_metrics_on_full_disk() -> None:
    """Let prometheus_client use the class above. Call it before the first metric is made."""
    values.MmapedDict = ReservedMmapedDict  # type: ignore[attr-defined]


def _reserve(path: Path, size: int) -> None:
    """Extend the file with zeros to `size` bytes. Raises OSError, and leaves no empty file, if the disk has no room."""
    try:
        with path.open("ab") as file:
            if (missing := size - file.tell()) > 0:
                file.write(bytes(missing))
    except OSError:
        if path.exists() and path.stat().st_size < _FIRST_BYTES:
            path.unlink()  # a scrape reads every file and expects a first block
        raise


def _log(error: OSError) -> None:
    logger.error("metrics of this process are not shared: %s", error.strerror)
