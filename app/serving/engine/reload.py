"""Reloading: watches the store and puts the best version in service. A bad version is refused and logged once.

A version is loaded, verified, self-checked and warmed up on a thread while the current one serves; the swap is one assignment
between two batches. The highest good version serves, unless one is pinned; removing the highest version rolls back.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.detection import store
from app.detection.detector import Detector, SelfCheckError
from app.detection.store import StoreError
from app.serving.engine.inference import Inference
from app.serving.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

POLL_S = 0.5

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


async def watch_store(
    versions: Versions, inference: Inference, metrics: Metrics, set_model: Callable[[Detector], None]
) -> None:
    """Put each better version in service when it appears. Runs until it is cancelled."""
    while True:
        await asyncio.sleep(POLL_S)
        before = dict(versions.rejected)
        try:
            serving = inference.detector.bundle.card.version
            detector = await asyncio.to_thread(versions.best, serving)
        except StoreError as error:
            if versions.rejected != before:
                logger.error("the version in service stays: %s", error)
            detector = None
        except OSError as error:
            logger.error("the store cannot be read: %s", error)
            detector = None
        for _ in set(versions.rejected.items()) - set(before.items()):
            metrics.record_refused_version()
        if detector is not None:
            set_model(detector)


def _fingerprint(folder: Path) -> Fingerprint:
    """The total size and the newest modification time of all files of a version."""
    files = [path.stat() for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    return sum(file.st_size for file in files), max((file.st_mtime_ns for file in files), default=0)
