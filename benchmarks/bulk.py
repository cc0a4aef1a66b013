"""Bulk scoring of 200,000 PNG files against decoding them alone: `python benchmarks/bulk.py [--images N] [--processes N]`.

Prints the images a second of both, with the same processes and the same parts, and checks that each image is one row.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pebble import ProcessPool

from app.detection.imaging.decode import decode_image
from app.scaling.sources import Slice, divide

ROOT = Path(__file__).parents[1]


def write_files(folder: Path, count: int) -> None:
    """Pen strokes as 28x28 PNG files, 2,000 a folder."""
    sys.path.insert(0, str(ROOT / "tests"))
    from strokes import png, stroke_images

    files = [png(image) for image in stroke_images(2000, seed=5)]
    for index in range(count):
        path = folder / f"{index // 2000:04d}" / f"{index % 2000:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[(index * 7) % 2000])


def decode_part(part: Sequence[Slice]) -> int:
    """Read and decode the files of a part."""
    return len([decode_image(Path(piece.path).read_bytes()) for piece in part])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in", Path(folder) / "out"
        write_files(source, options.images)
        with ProcessPool(options.processes, context=multiprocessing.get_context("forkserver")) as pool:
            list(pool.map(decode_part, list(divide([str(source / "0000")]))).result())  # the processes have started
            began = time.perf_counter()
            decoded = sum(pool.map(decode_part, list(divide([str(source)]))).result())
            alone = decoded / (time.perf_counter() - began)
        command = [sys.executable, "-m", "app", "score", str(source), "--to", str(out), "--processes", str(options.processes)]
        began = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT)
        scored = options.images / (time.perf_counter() - began)
        names = pq.read_table(out, columns=["name"])["name"].to_numpy()
        assert len(names) == len(np.unique(names)) == options.images
        print(f"decoding alone {alone:,.0f} images/s, score --to {scored:,.0f}: {scored / alone:.0%}")


if __name__ == "__main__":
    main()
