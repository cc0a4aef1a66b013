"""`oddigit score SOURCE --to FOLDER`: bulk scoring into Parquet files, on all cores or on a cluster of Ray."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from app.detection.extras import check_installed

if TYPE_CHECKING:
    from app.scaling.scoring import Done, Job

Engine = Literal["local", "ray"]  # what a bulk job runs on

_INTERVAL_S = 5.0  # between two lines of progress


def score_in_bulk(sources: list[str], job: "Job", size: int, engine: Engine, processes: int | None) -> int:
    """Score all images of the sources into parts in a folder, those that are not there yet; print the progress.

    `size` is the side of the images in arrays. Returns the number of anomalies in the folder.
    """
    check_installed("bulk", "pyarrow")
    if engine == "ray":
        check_installed("ray", "ray")
    job = job._replace(device="cpu") if job.device == "auto" else job  # most of the time is decoding, on all cores
    from app.scaling.files import SourceError
    from app.scaling.scoring import remove_others
    from app.scaling.sources import divide

    # Each process works on one core; numpy's library would start threads for all cores in each.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    Path(job.destination).mkdir(parents=True, exist_ok=True)
    parts = divide(sources, job.destination, size)
    if engine == "ray":
        from app.scaling import ray_data

        count, anomalies = _reported(ray_data.score(job, parts))
    else:
        from app.scaling import local
        from app.scaling.scoring import ImageScorer

        ImageScorer(job)  # raises the errors of the device and the version here, and not in each process
        count, anomalies = _reported(local.score(job, parts, processes or _cores()))
    if not count:
        raise SourceError(f"There are no images in {', '.join(sources)}; {job.destination} stays as it is.")
    remove_others(job, count)
    return anomalies


def _cores() -> int:
    """The cores that this process may use: fewer than the machine has under taskset, or in a container with a cpuset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quantity(number: int, one: str, several: str) -> str:
    """The number with its noun."""
    return f"{number:,} {one if number == 1 else several}"


def _reported(parts: "Iterator[Done]") -> tuple[int, int]:
    """Print the progress and the totals; returns the numbers of parts and of anomalies, old parts included."""
    count = images = skipped = errors = anomalies = 0
    started = last = time.monotonic()
    for done in parts:
        count += 1
        images += done.images
        skipped += done.images if done.skipped else 0
        errors += done.errors
        anomalies += done.anomalies
        now = time.monotonic()
        if now - last >= _INTERVAL_S:
            last = now
            typer.echo(f"{images:,} images, {(images - skipped) / (now - started):,.0f} a second", err=True)
    seconds = max(time.monotonic() - started, 1e-9)
    scored = images - skipped
    totals = f"{quantity(anomalies, 'anomaly', 'anomalies')}, {quantity(errors, 'error', 'errors')}"
    totals += f"; {quantity(skipped, 'was', 'were')} there before" if skipped else ""
    typer.echo(f"{quantity(scored, 'image', 'images')} in {seconds:.1f} s ({scored / seconds:,.0f} a second): {totals}")
    return count, anomalies
