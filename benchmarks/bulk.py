"""Bulk scoring of 200,000 PNG files: against decoding alone, interrupted, and on a cluster of Ray that loses a node.

    python benchmarks/bulk.py --data-dir ../shared/data
    python benchmarks/bulk.py --steps ray --ray-python PYTHON      # of an environment with Oddigit's packages and ray[data]

The steps can run one after the other, because the files and the rows stay in build/bulk:
- files: MNIST's 70,000 images again and again as PNG files, 2,000 a folder;
- speed: images a second of `score --to`, and of reading and decoding alone with the same processes and the same parts; and the
  CPU time of both, for a machine that is not idle;
- interrupted: Ctrl-C after half of the parts, then the same command again;
- ray: two nodes, one of which is killed after half of the parts.

Each step checks that every image is one row, and that the rows are those of the step `speed`.
"""

import argparse
import ctypes
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pebble import ProcessPool
from PIL import Image

from app.detection.imaging.decode import decode_image
from app.detection.store import find
from app.scaling.sources import PART_IMAGES, Slice, divide
from app.training.datasets import load_dataset

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bulk"
SOURCE, ROWS = BUILD / "files", BUILD / "rows"
_PR_SET_CHILD_SUBREAPER = 36  # of Linux


def files(options: argparse.Namespace) -> None:
    """Write the image files."""
    mnist = load_dataset("mnist", data_dir=options.data_dir)
    assert mnist.test is not None
    images = np.concatenate([mnist.train.images, mnist.test.images])
    shutil.rmtree(SOURCE, ignore_errors=True)
    for index in range(options.images):
        path = SOURCE / f"{index // 2000:04d}" / f"{index % 2000:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index % len(images)]).save(path)
    mean = sum(path.stat().st_size for path in (SOURCE / "0000").iterdir()) / 2000
    print(f"{options.images:,} files of {mean:.0f} bytes")


def speed(options: argparse.Namespace) -> None:
    """Reading and decoding alone, then the command."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)  # orphans become children of this process
    used = [cpu_seconds()]
    with ProcessPool(options.processes, context=multiprocessing.get_context("spawn")) as pool:
        warm_up = sum(pool.map(decode_part, list(divide([str(SOURCE / "0000")]))).result())  # the processes have started
        began = time.perf_counter()
        decoded = sum(pool.map(decode_part, list(divide([str(SOURCE)]))).result())
        alone = decoded / (time.perf_counter() - began)
    used.append(cpu_seconds())
    shutil.rmtree(ROWS, ignore_errors=True)
    began = time.perf_counter()
    subprocess.run(command(ROWS, options), check=True, cwd=ROOT)
    scored = options.images / (time.perf_counter() - began)
    used.append(cpu_seconds())
    check_rows(ROWS, options.images)
    size = sum(path.stat().st_size for path in ROWS.iterdir()) / options.images
    print(f"decoding alone {alone:,.0f} images/s, score --to {scored:,.0f}: {scored / alone:.0%}; a row has {size:.0f} bytes")
    counts = (decoded + warm_up, options.images)
    first, second = ((after - before) / n * 1e6 for (before, after), n in zip(pairwise(used), counts, strict=True))
    print(f"CPU time for an image: decoding alone {first:.0f} us, score --to {second:.0f} us: {first / second:.0%}")


def cpu_seconds() -> float:
    """CPU time of the processes that this one has started and that have ended, with the processes that they started."""
    time.sleep(1)  # the pool's own processes end a little after the command
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def decode_part(part: Sequence[Slice]) -> int:
    """Read and decode the files of a part."""
    return len([decode_image(Path(piece.path).read_bytes()) for piece in part])


def interrupted(options: argparse.Namespace) -> None:
    """Interrupt the command, and run it again."""
    out = BUILD / "interrupted"
    shutil.rmtree(out, ignore_errors=True)
    process = subprocess.Popen(command(out, options), cwd=ROOT)
    while len(list(out.glob("part-*"))) < options.images // PART_IMAGES // 2:
        if process.poll() is not None:
            sys.exit(f"The command ended with exit code {process.returncode} before half of the parts were written.")
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    print(f"exit code {process.wait()} after {len(list(out.glob('part-*')))} parts")
    subprocess.run(command(out, options), check=True, cwd=ROOT)
    check_rows(out, options.images)


def ray(options: argparse.Namespace) -> None:
    """The same on a cluster that loses a node."""
    out = BUILD / "ray"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    version = find(ROOT / "model_store", "mnist")
    killed_after = options.images // PART_IMAGES // 2
    script = [options.ray_python, "tests/scaling/cluster.py", version, SOURCE, out, str(killed_after)]
    began = time.perf_counter()
    subprocess.run(script, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - began
    check_rows(out, options.images)
    print(f"Ray, a node killed after {killed_after} parts: {options.images / seconds:,.0f} images/s, its start included")


def command(out: Path, options: argparse.Namespace) -> list[str]:
    """Score all files into a folder."""
    store = ["--store", str(ROOT / "model_store"), "--processes", str(options.processes)]
    return [sys.executable, "-m", "app", "score", str(SOURCE), "--to", str(out), *store]


def check_rows(folder: Path, count: int) -> None:
    """One row for each image, equal to those of the step `speed`."""
    rows = pq.read_table(folder)
    names = rows["name"].to_numpy()
    assert len(names) == len(np.unique(names)) == count
    assert rows["error"].null_count == count
    assert rows.equals(pq.read_table(ROWS))
    print(f"{count:,} rows, none twice, {rows['is_anomaly'].to_numpy().mean():.2%} anomalies")


STEPS = {"files": files, "speed": speed, "interrupted": interrupted, "ray": ray}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--data-dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--ray-python", default=sys.executable)
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=["files", "speed", "interrupted"])
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    for step in options.steps:
        STEPS[step](options)


if __name__ == "__main__":
    main()
