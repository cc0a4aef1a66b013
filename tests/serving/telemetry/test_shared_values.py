"""Metrics of several workers on a disk that is full."""

import resource
import shutil
import subprocess
from contextlib import contextmanager

import httpx
import pytest
from live import SERVE, serving
from strokes import png, stroke_images

from app.serving.telemetry.shared_values import ReservedMmapedDict

KIB = 1024


@contextmanager
def file_size_limit(size):
    """Limit the size of files that this process writes: to the process, a full disk. pytest's own output is such a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_is_written_in_full_before_it_is_mapped(tmp_path):
    """No holes: a write to one would kill the process when the disk is full."""
    path = tmp_path / "counter_1.db"
    shared = ReservedMmapedDict(str(path))
    for number in range(2000):
        shared.write_value(f"key-{number:05}-{'x' * 60}", float(number), 0.0)
    size = path.stat().st_size
    assert size > 128 * KIB
    assert path.stat().st_blocks * 512 >= size
    values = {key: value for key, value, _, _ in ReservedMmapedDict.read_all_values_from_file(path)}
    assert values[f"key-01999-{'x' * 60}"] == 1999
    shared.close()


def test_without_room_for_a_file_values_stay_in_memory(tmp_path):
    """No file is left that a scrape would stumble over."""
    with file_size_limit(16 * KIB):
        shared = ReservedMmapedDict(str(tmp_path / "counter_1.db"))
        for number in range(2000):
            shared.write_value(f"key-{number:05}-{'x' * 60}", float(number), 0.0)
    assert shared.read_value(f"key-01999-{'x' * 60}")[0] == 1999
    assert list(tmp_path.iterdir()) == []
    shared.close()


def test_without_room_to_grow_values_go_on_in_memory(tmp_path):
    """The file keeps its last values, and can still be read."""
    path = tmp_path / "counter_1.db"
    shared = ReservedMmapedDict(str(path))
    shared.write_value("early", 1.0, 0.0)
    with file_size_limit(64 * KIB):
        for number in range(2000):
            shared.write_value(f"key-{number:05}-{'x' * 60}", float(number), 0.0)
    assert shared.read_value("early")[0] == 1
    assert shared.read_value(f"key-01999-{'x' * 60}")[0] == 1999
    assert ("early", 1.0) in [(key.strip(), value) for key, value, _, _ in ReservedMmapedDict.read_all_values_from_file(path)]
    shared.close()


def ask(server, times=20):
    """The statuses of some scores, each over a connection of its own, and of a scrape."""
    image = png(stroke_images(1, seed=0)[0])
    headers = {"content-type": "image/png"}
    statuses = [httpx.post(f"{server.url}/score", content=image, headers=headers, timeout=30).status_code for _ in range(times)]
    return [*statuses, httpx.get(f"{server.url}/metrics", timeout=30).status_code]


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not installed")
def test_workers_that_cannot_write_their_metrics_serve(tiny_store, tmp_path):
    """From the start on, there is no room for one file of metrics."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0"}
    command = ("prlimit", f"--fsize={32 * KIB}", *SERVE)
    with serving(tmp_path / "log", "--workers", "2", command=command, **variables) as server:
        assert set(ask(server)) == {200}
        assert "metrics of this process are not shared" in server.log.read_text()
        assert "died" not in server.log.read_text()


def test_a_disk_that_becomes_full_kills_no_worker(tiny_store, tmp_path):
    """The folder of the metrics is a small file system of its own, which is filled while two workers serve."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this process may not mount a file system")
    try:
        variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0", "PROMETHEUS_MULTIPROC_DIR": str(folder)}
        with serving(tmp_path / "log", "--workers", "2", **variables) as server:
            with pytest.raises(OSError), (folder / "filler").open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4 * KIB))
            for path in ("/nothing", "/docs", "/model", "/latent", "/drift", "/readyz", "/openapi.json"):
                assert httpx.get(f"{server.url}{path}", timeout=30).status_code < 500
            assert set(ask(server)) == {200}
            assert "died" not in server.log.read_text()
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False)
