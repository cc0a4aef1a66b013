"""The models in service: every detector of the store, each with its own versions, inference queue and traffic monitor.

A version is loaded, verified, self-checked and warmed up on a thread while the current one serves; it replaces that one between
two batches of its model. A model that cannot be loaded is left out until it can be loaded; the others serve on.
"""

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import Bundle
from app.detection.detector import Detections, Detector
from app.detection.store import StoreError
from app.serving.engine.daemon_threads import start_daemon
from app.serving.engine.inference import Inference
from app.serving.engine.reload import Versions
from app.serving.engine.thread_stage import ThreadStage
from app.serving.telemetry.drift import Drift, DriftMonitor
from app.serving.telemetry.metrics import ModelMetrics

logger = logging.getLogger(__name__)

POLL_S = 0.5
_BUFFER_SIZE = 512  # forward passes that are buffered before they are counted
START_TIMEOUT_S = 10.0  # for the models besides the default; one takes 0.15 s


class UnknownModel(LookupError):
    """No model of this name is in service; the message lists those that are."""


class _ScoredImages(NamedTuple):
    """The N images of a forward pass whose responses have verdicts, as metrics and drift need them."""

    bundle: Bundle
    scores: NDArray[np.float32]  # [N]
    p_values: NDArray[np.float64]  # [N]
    calibration_sizes: NDArray[np.intp]  # [N]


class TrafficMonitor:
    """Records the forward passes of one model: numbers of images; scores, verdicts and drift of images with verdicts.

    Passes are buffered and counted together: counting costs more than appending to a list.
    """

    def __init__(self, metrics: ModelMetrics, level: float) -> None:
        """`level` is the alarm level of the drift monitor's capital."""
        self._metrics = metrics
        self._level = level
        self._bundle: Bundle | None = None  # the bundle in service
        self._drift = DriftMonitor(np.zeros(1), level)
        self._batches: list[int] = []  # numbers of images
        self._scored: list[_ScoredImages] = []

    def set_model(self, bundle: Bundle, device: str) -> None:
        """Start a new stream of p-values for a bundle that goes into service on `device`."""
        self.flush()
        uploads = () if bundle.uploads is None else bundle.uploads.calibrations
        self._bundle, self._drift = bundle, DriftMonitor(bundle.calibration.scores, self._level, uploads, shuffle=True)
        self._metrics.set_version(bundle.card.version, bundle.card.scorer, device)

    def record_batch(self, bundle: Bundle, images: int, with_verdicts: Detections | None) -> None:
        """Record a forward pass of `images` images; `with_verdicts` are the detections that have verdicts."""
        self._batches.append(images)
        if with_verdicts is not None:
            scores, p_values, sizes = with_verdicts.scores, with_verdicts.p_values, with_verdicts.calibration_sizes
            self._scored.append(_ScoredImages(bundle, scores, p_values, sizes))
        if len(self._batches) >= _BUFFER_SIZE:
            self.flush()

    def flush(self) -> None:
        """Count everything that is buffered. The server calls it once a second, before each scrape, and at its end."""
        batches, self._batches = self._batches, []
        scored, self._scored = self._scored, []
        self._metrics.record_batches(batches)
        for _, passes in itertools.groupby(scored, key=lambda each: id(each.bundle)):
            self._record_scores([*passes])

    def _record_scores(self, passes: list[_ScoredImages]) -> None:
        """Count forward passes of one bundle."""
        bundle = passes[0].bundle
        scores, p_values = np.concatenate([each.scores for each in passes]), np.concatenate([each.p_values for each in passes])
        self._metrics.record_scores(scores, p_values, int((p_values <= bundle.card.alpha).sum()))
        if bundle is self._bundle:  # a long array may finish after its version was replaced
            self._drift.observe(p_values, np.concatenate([each.calibration_sizes for each in passes]))

    async def drift(self) -> Drift:
        """The drift state of the model in service. The bets are made on a thread."""
        self.flush()
        await asyncio.to_thread(self._drift.update)
        return self._drift.state()


class Model:
    """One detector of the store. Belongs to one event loop."""

    def __init__(
        self, versions: Versions, metrics: ModelMetrics, *, max_batch_size: int, arrays: ThreadStage, drift_level: float
    ) -> None:
        """`max_batch_size` in images; `arrays` is the thread that scores arrays; `drift_level` is that of DriftMonitor."""
        self.name = versions.name
        self.versions = versions
        self.monitor = TrafficMonitor(metrics, drift_level)
        self.inference = Inference(max_batch_size=max_batch_size, arrays=arrays, observer=self.monitor.record_batch)
        self._metrics = metrics
        self._loading = asyncio.Lock()
        self._error = ""  # the last one of the store

    async def load(self) -> None:
        """Put the best version in service, if it is not already. Raises StoreError if no version can serve."""
        async with self._loading:
            serving = self.inference.detector.bundle.card.version if self.inference.is_loaded else None
            before = dict(self.versions.rejected)
            try:
                detector = await asyncio.wrap_future(start_daemon(self.versions.best, serving))
            finally:
                for _ in set(self.versions.rejected.items()) - set(before.items()):
                    self._metrics.record_refused_version()
            self._error = ""
            if detector is not None:
                self._set_detector(detector)

    async def try_load(self) -> None:
        """As `load`, but log every error and keep the version in service: no defect of a model may stop the others."""
        try:
            await self.load()
        except StoreError as error:  # no version can serve
            if str(error) != self._error:  # the store is read twice a second
                logger.error("%s: %s", self.name, error)
            self._error = str(error)
        except OSError as error:
            logger.error("%s: the store cannot be read: %s", self.name, error)
        except Exception:  # whatever a version does, the next one is looked at
            logger.exception("%s: the version in service stays", self.name)

    async def watch(self) -> None:
        """Put each better version in service when it appears. Runs until it is cancelled."""
        while True:
            await asyncio.sleep(POLL_S)
            await self.try_load()

    async def update_metrics(self) -> None:
        """Count what is buffered, and set the metrics that describe the current state."""
        drift = await self.monitor.drift()
        self._metrics.set_gauges(
            queued_images=self.inference.queued_images, drift_capital=drift.capital, drifting=drift.drifting
        )

    def _set_detector(self, detector: Detector) -> None:
        self.monitor.set_model(detector.bundle, str(detector.device))
        self.inference.set_model(detector)
        logger.info("serving %s on %s with %s", detector.bundle.label, detector.device, detector.runtime)


class Models:
    """The models by name. Iteration gives those in service, the default first."""

    def __init__(self, default: str, make: Callable[[str], Model], list_names: Callable[[], list[str]]) -> None:
        """`default` must be loadable; `make` creates the model of a name; `list_names` lists the names to serve besides it."""
        self._make, self._list_names = make, list_names
        self.default = make(default)
        self._by_name = {default: self.default}
        self._error = ""  # the last one of the store

    def find(self, name: str | None) -> Model:
        """The model `name`, the default for None. Raises UnknownModel."""
        if name is None:
            return self.default
        model = self._by_name.get(name)
        if model is None or not model.inference.is_loaded:
            known = ", ".join(model.name for model in self)
            raise UnknownModel(f"There is no such model here; in service: {known}.")
        return model

    def __iter__(self) -> Iterator[Model]:
        return iter([model for model in self._by_name.values() if model.inference.is_loaded])

    @property
    def refused_versions(self) -> list[tuple[str, int, str]]:
        """Model, version and reason of each refused version, of models that are not in service too."""
        return [
            (name, int(folder.name), reason)
            for name, model in self._by_name.items()
            for folder, reason in sorted(model.versions.rejected.items(), key=lambda item: int(item[0].name))
        ]

    async def load(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Load the default and every other model that can be loaded. Raises StoreError if the default cannot.

        After `timeout_s` seconds the other models are no longer waited for; they are put in service when they are loaded.
        """
        await self.default.load()
        self._adding = asyncio.create_task(self._add_new())
        await asyncio.wait([self._adding], timeout=timeout_s)

    async def watch(self) -> None:
        """Reload each model when a better version appears, and add models that appear. Runs until it is cancelled."""
        watched = set()
        async with asyncio.TaskGroup() as group:
            while True:
                for model in self._by_name.values():
                    if model.name not in watched:  # `load` may have added it after its timeout
                        watched.add(model.name)
                        group.create_task(model.watch())
                await asyncio.sleep(POLL_S)
                await self._add_new()

    async def _add_new(self) -> None:
        """Load the models of the store that are not known yet."""
        try:
            names = await asyncio.wrap_future(start_daemon(self._list_names))
        except (OSError, StoreError) as error:
            if str(error) != self._error:
                logger.error("the store cannot be read: %s", error)
            self._error = str(error)
            return
        except Exception:  # for instance no thread can be started: it is tried again
            logger.exception("the store cannot be read")
            return
        self._error = ""
        added = [self._make(name) for name in names if name not in self._by_name]
        self._by_name |= {model.name: model for model in added}  # not in service until it is loaded
        await asyncio.gather(*(model.try_load() for model in added))
