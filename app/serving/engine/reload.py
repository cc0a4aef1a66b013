"""Which version of a detector to serve: the highest good one, or the pinned one. A bad version is refused and logged once.

Removing the highest version rolls back.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.detection import store
from app.detection.detector import Detector, SelfCheckError
from app.detection.store import StoreError

logger = logging.getLogger(__name__)

Fingerprint = tuple[int, int]  # size and modification time of a version's files; a repaired version is tried again


@dataclass
class Versions:
    """The versions of one detector in a store, and which of them were refused."""

    root: Path
    name: str
    pinned: int | None
    load: Callable[[Path], Detector]  # folder -> a detector that is ready to serve, or StoreError, SelfCheckError
    rejected: dict[int, str] = field(default_factory=dict)  # version -> why
    _fingerprints: dict[int, Fingerprint] = field(default_factory=dict)

    def best(self, serving: int | None = None) -> Detector | None:
        """The highest good version, loaded, or None if it is already `serving`.

        Raises:
            StoreError: no version can serve.
        """
        if self.pinned is None:
            found = store.versions(self.root, self.name)[::-1]
        else:
            found = [int(store.find(self.root, self.name, self.pinned).name)]
        self._forget(set(found))
        for version in found:
            if version == serving:
                return None
            if detector := self._try(version):
                return detector
        if self.rejected:
            raise StoreError("No version can serve. " + " ".join(self.rejected.values()))
        raise StoreError(f"There is no detector named {self.name!r} in {self.root}; train one with `oddigit train`.")

    def _try(self, version: int) -> Detector | None:
        folder = self.root / self.name / str(version)
        fingerprint = _fingerprint(folder)
        if version in self.rejected and self._fingerprints.get(version) == fingerprint:
            return None
        try:
            detector = self.load(folder)
        except Exception as error:  # no defect of a version may stop the server
            known = isinstance(error, StoreError | SelfCheckError)
            reason = str(error) if known else f"{folder} cannot be loaded: {error!r}"
            self.rejected[version], self._fingerprints[version] = reason, fingerprint
            logger.error("version %s/%d is refused: %s", self.name, version, reason)
            return None
        self.rejected.pop(version, None)
        return detector

    def _forget(self, found: set[int]) -> None:
        for version in set(self.rejected) - found:
            del self.rejected[version]


def _fingerprint(folder: Path) -> Fingerprint:
    """The total size and the newest modification time of all files of a version."""
    files = [path.stat() for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    return sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)
