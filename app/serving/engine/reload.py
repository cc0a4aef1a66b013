"""Which version of a detector to serve: the highest good one, or the pinned one. A bad version is refused and logged once.

With several stores, the first one with a good version is used. Removing the highest version rolls back.
"""

import logging
import os
import stat
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from app.detection import store
from app.detection.bundle import BundleError
from app.detection.detector import Detector
from app.detection.store import REPORT, StoreError
from app.detection.store_path import Stores
from app.serving.engine.daemon_threads import start_daemon

logger = logging.getLogger(__name__)

LOAD_TIMEOUT_S = 60.0  # the shipped version takes 0.2 s; a file system that hangs takes forever

RETRY_S = 60.0  # after which a refused version is tried again: memory or open files may have been short

Fingerprint = tuple[int, int]  # size and time of the last change of a version's files; a repaired version is tried at once
_MAX_LISTED = 1_000  # files of a version; the shipped one has 20


class _Attempt(NamedTuple):
    """An attempt to load a version that was refused."""

    fingerprint: Fingerprint
    hanging: weakref.ref[Future[Detector]] | None  # the load, if it had not ended
    again: float  # time of the clock at which to try it again


@dataclass
class Versions:
    """The versions of one detector in a store, and which of them were refused."""

    root: Path | Stores
    name: str
    pinned: int | None
    load: Callable[[Path], Detector]  # folder -> a detector that is ready to serve, or BundleError
    load_timeout_s: float = LOAD_TIMEOUT_S
    clock: Callable[[], float] = time.monotonic
    rejected: dict[Path, str] = field(default_factory=dict)  # folder -> why, without the store's path: clients can read it
    stored: list[int] = field(default_factory=list)  # all versions, ascending, when the store was last read
    _tried: dict[Path, _Attempt] = field(default_factory=dict)  # of the refused ones
    _loaded: Path | None = None

    def best(self, serving: int | None = None) -> Detector | None:
        """The highest good version, loaded, or None if it is already `serving`.

        Raises:
            StoreError: no version can serve.
        """
        found = store.by_preference(self.root, self.name)
        self.stored = sorted({int(folder.name) for folder in found})
        if self.pinned is not None:
            found = [store.find(self.root, self.name, self.pinned)]
        self._forget(set(found))
        for folder in found:
            if int(folder.name) == serving and self._loaded in (None, folder):  # two stores may have the same number
                return None
            if detector := self._try(folder):
                self._loaded = folder
                return detector
        if self.rejected:
            raise StoreError("No version can serve. " + " ".join(self.rejected.values()))
        raise store.unknown_name(self.root, self.name)

    def _try(self, folder: Path) -> Detector | None:
        fingerprint = _fingerprint(folder)
        if folder in self.rejected and self._tried[folder].fingerprint == fingerprint and not self._is_due(self._tried[folder]):
            return None
        loading = None
        try:
            loading = start_daemon(self.load, folder)
            detector = loading.result(self.load_timeout_s)
        except Exception as error:  # no defect of a version may stop the server
            reason = str(error) if isinstance(error, BundleError) else f"{folder} cannot be loaded: {error!r}"
            hanging = weakref.ref(loading) if loading is not None and not loading.done() else None
            if hanging:
                reason = f"{folder} could not be loaded within {self.load_timeout_s:g} s."
            self._tried[folder] = _Attempt(fingerprint, hanging, self.clock() + RETRY_S)
            if self.rejected.get(folder) != (public := self._without_path(reason)):
                self.rejected[folder] = public
                logger.error("version %s/%s is refused: %s", self.name, folder.name, reason)
            return None
        finally:
            loading = None  # the error refers to this function's variables: a cycle would keep all that was loaded
        self.rejected.pop(folder, None)
        self._tried.pop(folder, None)
        return detector

    def _is_due(self, attempt: _Attempt) -> bool:
        """Whether to try a version again. Not while a thread still loads it: another one would hang too."""
        loading = attempt.hanging() if attempt.hanging else None
        return (loading is None or loading.done()) and self.clock() >= attempt.again

    def _without_path(self, reason: str) -> str:
        """`reason` with paths relative to the store."""
        for root in self.root.roots if isinstance(self.root, Stores) else (self.root,):
            reason = reason.replace(f"{root.resolve()}{os.sep}", "").replace(f"{root}{os.sep}", "")
        return reason

    def _forget(self, found: set[Path]) -> None:
        for folder in set(self.rejected) - found:
            del self.rejected[folder]


def _fingerprint(folder: Path) -> Fingerprint:
    """The total size of the files of a version, and when one was last changed. Opens none and follows no link."""
    files = [each for each in _list(folder) + _list(folder / REPORT) if not stat.S_ISDIR(each.st_mode)]
    return sum(file.st_size for file in files), max((file.st_ctime_ns for file in files), default=0)


def _list(folder: Path) -> list[os.stat_result]:
    """The status of the entries of a folder, at most _MAX_LISTED; none where it cannot be read."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry.stat(follow_symlinks=False) for entry, _ in zip(entries, range(_MAX_LISTED), strict=False)]
    return []
