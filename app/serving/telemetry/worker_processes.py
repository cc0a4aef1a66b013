"""The processes of several workers: prometheus_client's `process_*` metrics for each, with its id as the label `pid`.

prometheus_client leaves these metrics out where several processes share their numbers. A worker that runs is known by the file
of its live gauges in the shared folder.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from prometheus_client import Metric, ProcessCollector
from prometheus_client.multiprocess import mark_process_dead
from prometheus_client.registry import Collector


class WorkerProcesses(Collector):
    """Memory, CPU time, start time and open files of each worker."""

    def __init__(self, folder: Path) -> None:
        """`folder` is PROMETHEUS_MULTIPROC_DIR."""
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """One family for each metric, with a sample for each worker that runs."""
        families: dict[str, Metric] = {}
        for process in sorted(_workers(self._folder)):
            for found in ProcessCollector(pid=partial(int, process), registry=None).collect():
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {"pid": str(process)}, sample.value)
        return families.values()


def remove_dead_workers(folder: Path) -> None:
    """Remove the live gauges of processes that no longer run: this worker may replace one that was killed."""
    for process in _workers(folder):
        if not _is_running(process):
            with suppress(FileNotFoundError):  # another worker that starts now may have removed the file first
                mark_process_dead(process, str(folder))  # type: ignore[no-untyped-call]


def _workers(folder: Path) -> set[int]:
    """The process ids of the workers that have live gauges; some of them may have ended."""
    names = (file.stem.rpartition("_")[2] for file in folder.glob("gauge_live*_*.db"))
    return {int(name) for name in names if name.isdigit()}


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # a process of another user, or a number that is no process id
        pass
    return True
