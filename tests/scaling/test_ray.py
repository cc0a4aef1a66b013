"""Bulk scoring on a cluster of Ray, installed into an environment of its own."""

import json
import os
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from live import ROOT, environment, run
from strokes import npy, stroke_images

PART_IMAGES, PARTS = 2000, 8

pytestmark = pytest.mark.skipif(
    "ODDIGIT_TEST_RAY" not in os.environ, reason="installing Ray takes minutes; ODDIGIT_TEST_RAY=1 runs this test"
)


def test_a_node_that_is_lost_costs_nothing(ray_python, tiny_store, tmp_path):
    """Two nodes, one killed after the second part: every image is there once, with the same row as from one machine."""
    (tmp_path / "array.npy").write_bytes(npy(stroke_images(PART_IMAGES * PARTS, seed=4)))
    (tmp_path / "out").mkdir()
    command = [ray_python, ROOT / "tests/scaling/cluster.py", tiny_store / "mnist" / "1", tmp_path / "array.npy"]
    done = subprocess.run(
        [*command, tmp_path / "out", "2"], env=environment(PYTHONPATH=str(ROOT)), capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("[{")]  # Ray writes to standard output too
    parts = json.loads(line)
    assert sorted(part["part"] for part in parts) == list(range(PARTS))
    assert sum(part["images"] for part in parts) == PART_IMAGES * PARTS
    options = ("--to", tmp_path / "local", "--store", tiny_store)
    local = run(sys.executable, "-m", "app", "score", *map(str, (tmp_path / "array.npy", *options)))
    assert local.returncode == 0, local.stderr
    assert pq.read_table(tmp_path / "out").equals(pq.read_table(tmp_path / "local"))
