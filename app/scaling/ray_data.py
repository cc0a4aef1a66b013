"""A bulk job on a cluster of Ray, by Ray Data (extra `ray`). Every machine sees the store, the sources and the destination.

Ray Data starts actors as there are cores (or GPUs), gives each a part when it is free, and repeats the parts of a machine that
is lost. A part that is scored twice is one file all the same, because its name and its content are the same.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from app.scaling.scoring import Done, ImageScorer, Job, complete, write
from app.scaling.sources import Slice

_RETRIES = 3  # rounds, for parts whose machine was lost with their result


class _Actor:
    """A detector in a process of Ray; scores a part a call."""

    def __init__(self, job: tuple[Any, ...]) -> None:
        self._job = Job(*job)
        self._scorer = ImageScorer(self._job)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        part = [Slice(*piece) for piece in json.loads(row["slices"])]
        return write(self._job, row["part"], part, self._scorer.score_part(part))._asdict()


def score(job: Job, parts: Iterable[Sequence[Slice]]) -> Iterator[Done]:
    """Score the parts that are not complete yet; yields each part when it is. Connects to RAY_ADDRESS, or starts Ray here."""
    import ray

    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="WARNING")
    missing: dict[int, Sequence[Slice]] = {}
    for index, part in enumerate(parts):
        if (done := complete(job, index, part)) is not None:
            yield done
        else:
            missing[index] = part
    for _ in range(_RETRIES):
        if not missing:
            return
        for done in _run(job, missing):
            if missing.pop(done.part, None) is not None:
                yield done
    if missing:
        raise RuntimeError(f"{len(missing):,} parts could not be scored; run the command again")


def _run(job: Job, parts: dict[int, Sequence[Slice]]) -> Iterator[Done]:
    import ray

    rows = [{"part": index, "slices": json.dumps(part)} for index, part in parts.items()]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    gpus = int(ray.cluster_resources().get("GPU", 0)) if job.device != "cpu" else 0
    actors = gpus or int(ray.cluster_resources()["CPU"])
    scored = dataset.map(
        _Actor, fn_constructor_args=(tuple(job),), concurrency=(1, max(1, actors)), num_cpus=1, num_gpus=1 if gpus else 0
    )
    for row in scored.iter_rows():
        yield Done(**row)
