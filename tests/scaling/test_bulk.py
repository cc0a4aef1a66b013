"""Bulk jobs with the command itself: every kind of source, one row an image, interruption, and processes that die."""

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from live import ROOT, environment
from strokes import npy, png, stroke_images
from typer.testing import CliRunner

from app.cli.commands import cli
from app.detection.detector import Detector
from app.detection.imaging.decode import decode_image
from app.detection.imaging.upload_warnings import LOOKS_INVERTED, decode_upload
from app.scaling import sources
from app.scaling.files import SourceError
from app.scaling.scoring import ImageScorer, Job, complete, write
from app.scaling.sources import divide

IMAGES = stroke_images(40, seed=21)
FILES = [png(image) for image in IMAGES]


def command(*arguments):
    return [sys.executable, "-m", "app", "score", *map(str, arguments)]


def score(*arguments):
    """The command in this process; its pools are processes all the same."""
    return CliRunner().invoke(cli, ["score", *map(str, arguments)])


def rows(folder):
    """All rows of a job, in order."""
    return pq.read_table(folder).to_pylist()


@pytest.fixture
def folder(tmp_path):
    """20 images in folders, one broken image, one file that is none."""
    root = tmp_path / "scans"
    for index, file in enumerate(FILES[:20]):
        path = root / f"{index % 3}" / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file)
    (root / "1" / "broken.png").write_bytes(FILES[0][:60])
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="session")
def expected(tiny_bundle):
    """The scores of the drawings, as the detector gives them."""
    images = np.stack([decode_image(file).image for file in FILES])
    return Detector(tiny_bundle, "cpu").detect(images).scores


def test_each_image_of_a_folder_is_a_row(folder, tiny_store, tiny_bundle, expected, tmp_path):
    """With score, p-value, verdict, embedding and warnings; a broken one with its error."""
    done = score(folder, "--to", tmp_path / "out", "--store", tiny_store, "--processes", 2)
    assert done.exit_code == 0, done.stderr
    assert "21 images" in done.stdout and "1 error" in done.stdout
    found = {Path(row["name"]).name: row for row in rows(tmp_path / "out")}
    assert len(found) == 21
    for index in range(20):
        row = found[f"{index:02d}.png"]
        assert row["score"] == pytest.approx(expected[index], rel=1e-5)
        assert row["is_anomaly"] == (row["p_value"] <= tiny_bundle.card.alpha)
        assert (len(row["embedding"]), row["error"]) == (2, None)
    assert found["broken.png"]["error"] and found["broken.png"]["score"] is None


def test_warnings_are_those_of_the_server(tiny_store, tmp_path):
    """In words: an image with bright corners, which is taken as it is, looks inverted."""
    (tmp_path / "white.png").write_bytes(png(255 - IMAGES[0]))
    done = score(tmp_path / "white.png", "--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
    assert done.exit_code == 0, done.stderr
    assert rows(tmp_path / "out")[0]["warnings"] == [LOOKS_INVERTED]


def test_arrays_tar_files_parquet_and_globs_are_sources(tiny_store, expected, tmp_path):
    """Each image has the same score wherever it comes from."""
    (tmp_path / "array.npy").write_bytes(npy(IMAGES))
    with tarfile.open(tmp_path / "shard-0.tar", "w") as archive:
        for index, file in enumerate(FILES):
            for name, content in ((f"{index:03d}.png", file), (f"{index:03d}.json", b"{}")):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    pq.write_table(
        pa.table({"label": [0] * 40, "image": [{"bytes": file, "path": None} for file in FILES]}),
        tmp_path / "a.parquet",
        row_group_size=15,
    )
    for index, file in enumerate(FILES):
        (tmp_path / f"{index:02d}.png").write_bytes(file)
    for source in ("array.npy", "shard-*.tar", "a.parquet", "[0-9][0-9].png"):
        done = score(tmp_path / source, "--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
        assert done.exit_code == 0, done.stderr
        assert [row["score"] for row in rows(tmp_path / "out")] == pytest.approx(expected.tolist(), rel=1e-5)
    address = f"file://{tmp_path}/shard-0.tar"
    assert [piece.images for part in divide([address]) for piece in part] == [1] * 40


@pytest.fixture
def many(tmp_path):
    """3,000 files in 30 parts' worth of work."""
    root = tmp_path / "many"
    root.mkdir()
    for index in range(3000):
        (root / f"{index:04d}.png").write_bytes(FILES[index % 40])
    return root


def test_an_interrupted_job_goes_on_where_it_stopped(tiny_store, many, tmp_path):
    """What was written is not scored again, and at the end each image is there once; then nothing is left to do."""
    arguments = (many, many, many, many, "--to", tmp_path / "out", "--store", tiny_store, "--processes", 2)
    running = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while not list((tmp_path / "out").glob("part-*.parquet")):
        assert time.monotonic() < until
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    written = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("part-*.parquet")}
    assert 0 < len(written) <= 6
    done = score(*arguments)
    assert done.exit_code == 0, done.stderr
    assert "were there before" in done.stdout
    found = [row["name"] for row in rows(tmp_path / "out")]
    assert sorted(found) == sorted(str(path) for path in many.iterdir() for _ in range(4))
    for name, inode in written.items():
        assert (tmp_path / "out" / name).stat().st_ino == inode
    assert "0 images in" in score(*arguments).stdout
    assert not list((tmp_path / "out").glob(".*"))


def test_other_options_or_images_are_scored_again(tiny_store, folder, tmp_path):
    """A part is skipped only if it holds what is asked for; parts of a larger job are removed."""
    out = ("--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
    score(folder, *out)
    assert "21 images in" in score(folder, *out, "--alpha", 0.3).stdout
    assert "0 images in" in score(folder, *out, "--alpha", 0.3).stdout
    (tmp_path / "out" / "part-00000007.parquet").write_bytes(b"of another job")
    (folder / "0" / "new.png").write_bytes(FILES[30])
    assert "22 images in" in score(folder, *out, "--alpha", 0.3).stdout
    assert len(rows(tmp_path / "out")) == 22
    (folder / "0" / "new.png").write_bytes(FILES[31] + b" ")  # a file of the same name
    assert "22 images in" in score(folder, *out, "--alpha", 0.3).stdout


def test_an_empty_source_removes_no_results(tiny_store, folder, tmp_path):
    """A folder that is not mounted looks like an empty one."""
    out = ("--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
    score(folder, *out)
    (tmp_path / "empty").mkdir()
    done = score(tmp_path / "empty", *out)
    assert (done.exit_code, len(rows(tmp_path / "out"))) == (2, 21)
    assert "holds no image" in done.stderr and "Traceback" not in done.stderr


def test_only_regular_files_are_read(tiny_store, tmp_path):
    """A FIFO that nobody writes to would wait forever, a device never end: both are rows with an error."""
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.npy", "c.tar"):
        os.mkfifo(tmp_path / "in" / name)
    (tmp_path / "in" / "d.png").symlink_to("/dev/zero")
    (tmp_path / "in" / "e.png").write_bytes(FILES[0])
    done = score(tmp_path / "in", "--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
    assert done.exit_code == 0, done.stderr
    assert [row["error"] for row in rows(tmp_path / "out")] == ["not a regular file"] * 4 + [None]


def test_archives_of_arrays_are_sources(tiny_store, expected, tmp_path, monkeypatch):
    """As the command without --to reads them: `images`, or the only array, in parts; others are rows with the reason."""
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", images=IMAGES, labels=np.arange(40))
    np.savez_compressed(tmp_path / "in" / "b.NPZ.npz", IMAGES.reshape(40, 784))
    np.savez(tmp_path / "in" / "c.npz", a=IMAGES, b=IMAGES)
    (tmp_path / "in" / "d.npz").write_bytes(b"PK\x03\x04")
    (tmp_path / "in" / "e.png").write_bytes(FILES[0])
    done = score(tmp_path / "in", "--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
    assert "83 images" in done.stdout and " 2 errors" in done.stdout, done.output
    found = rows(tmp_path / "out")
    assert [row["score"] for row in found[:80]] == pytest.approx([*expected, *expected], rel=1e-4)
    assert found[40]["name"] == f"{tmp_path}/in/b.NPZ.npz[0]"
    assert "holds a, b" in found[80]["error"] and "damaged .npz" in found[81]["error"]
    monkeypatch.setattr(sources, "PART_IMAGES", 15)
    pieces = [piece for part in divide([str(tmp_path / "in" / "b.NPZ.npz")]) for piece in part]
    assert [piece.images for piece in pieces] == [15, 15, 10]
    contents = [item.content for item in sources.read(pieces, 28)]
    assert np.array_equal(contents, IMAGES)


@pytest.mark.parametrize("at", ["content", "compression"])
def test_a_damaged_archive_of_arrays_is_a_row_with_an_error(tmp_path, at):
    """Damage that is found while the array is read, and a compression that numpy does not write."""
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2 if at == "compression" else zipfile.ZIP_STORED) as archive:
        archive.writestr("images.npy", npy(IMAGES))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    found = [item for part in divide([str(file)]) for item in sources.read(part, 28)]
    assert ".npz" in found[-1].error and found[-1].content is None


def test_results_among_the_sources_are_left_out(tiny_store, folder, tmp_path):
    """Where the output folder lies in a source, a second run scores the same images; images beside the results stay sources."""
    out = ("--store", tiny_store, "--processes", 1)
    for destination in (folder / "results", folder):
        assert "21 images in" in score(folder, "--to", destination, *out).stdout
        assert "0 images in" in score(folder, "--to", destination, *out).stdout
        shutil.rmtree(folder / "results", ignore_errors=True)
    done = score(folder / "*.parquet", "--to", folder, *out)
    assert done.exit_code == 2 and "There are no images" in done.stderr
    assert len(rows(folder / "part-00000000.parquet")) == 21


def test_an_anomaly_fails_where_asked(tiny_store, folder, tmp_path):
    """With --fail-on-anomaly the exit code is 1 for an anomaly, also for one that an earlier run has found."""
    out = ("--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
    assert score(folder, *out, "--fail-on-anomaly", "--alpha", 0.006).exit_code == 0
    assert score(folder, *out, "--alpha", 0.99).exit_code == 0
    done = score(folder, *out, "--alpha", 0.99, "--fail-on-anomaly")
    found = sum(bool(row["is_anomaly"]) for row in rows(tmp_path / "out"))
    assert done.exit_code == 1 and found and "0 images in" in done.stdout
    assert f"{found} anomalies, 1 error; 21 were there before" in done.stdout


@pytest.mark.parametrize(
    ("source", "to", "words"),
    [("a.png", "s3://bucket/x", "not an address"), ("a.png", "memory://x", "not an address"), ("-", "out", "standard input")],
)
def test_what_a_bulk_job_cannot_use_is_refused(tiny_store, tmp_path, monkeypatch, source, to, words):
    """A folder named s3: would be made in silence."""
    monkeypatch.chdir(tmp_path)
    done = score(source, "--to", to, "--store", tiny_store)
    assert (done.exit_code, words in done.stderr) == (2, True), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_a_sentence(tiny_store, folder, tmp_path):
    """And not one traceback for each process."""
    done = score(folder, "--to", tmp_path / "out", "--store", tiny_store, "--device", "gpu")
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_arrays_of_flat_images_are_sources(tiny_store, expected, tmp_path):
    """[N, 784] and [N, 1, 28, 28], as the command without --to reads them."""
    for name, shape in (("flat", (40, 784)), ("channel", (40, 1, 28, 28))):
        np.save(tmp_path / f"{name}.npy", IMAGES.reshape(shape))
        done = score(tmp_path / f"{name}.npy", "--to", tmp_path / name, "--store", tiny_store, "--processes", 1)
        assert "40 images" in done.stdout and " 0 errors" in done.stdout, done.stdout
        assert np.allclose([row["score"] for row in rows(tmp_path / name)], expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(784, 784), (28, 28), (1, 784)])
def test_the_images_of_an_array_are_counted_by_the_size_of_the_model(tmp_path, shape):
    """784 flat images are no image of 784x784 pixels, and one image is one."""
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    (part,) = divide([str(tmp_path / "a.npy")])
    found = list(sources.read(part, 28))
    assert len(found) == math.prod(shape) // 784 and not any(item.error for item in found)


def test_a_kind_with_too_few_calibration_images_is_a_row_with_the_reason(tmp_path, samples):
    """The others are scored: in the shipped detector one group has fewer than alpha 0.001 needs."""
    image = np.full((120, 120), 255, np.uint8)
    image[20:100, 60] = 0  # a hairline
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "thin.png").write_bytes(png(image))
    (tmp_path / "in" / "seven.png").write_bytes((samples / "seven.png").read_bytes())
    options = ("--store", ROOT / "model_store", "--alpha", 0.001)
    done = score(tmp_path / "in", "--to", tmp_path / "out", *options)
    assert done.exit_code == 0, done.stderr
    seven, thin = rows(tmp_path / "out")
    assert seven["is_anomaly"] is False and seven["error"] is None
    assert "at least 999 calibration images" in thin["error"] and thin["score"] is None
    printed = score(tmp_path / "in", "--format", "jsonl", *options)
    assert printed.exit_code == 2
    assert ["error" in row for row in map(json.loads, printed.stdout.splitlines())] == [False, True]


@pytest.mark.parametrize("reported", [True, False], ids=["while it works", "before it reports that it works"])
def test_an_image_that_ends_its_process_is_a_row_with_an_error(tiny_store, folder, tmp_path, monkeypatch, reported):
    """The others are scored all the same, also where pebble gives its pool up. A later run scores the part again."""
    from app.scaling import local

    def give_up(manager, worker):
        raise BrokenProcessPool("All workers expired")

    if not reported:
        monkeypatch.setattr("pebble.pool.process.PoolManager.find_expired_task", give_up)
    monkeypatch.setattr(local, "ImageScorer", Fragile)
    context = __import__("multiprocessing").get_context("fork")  # so that the processes have the fragile scorer
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: context)
    (tmp_path / "out").mkdir()
    job = Job(str(tiny_store / "mnist" / "1"), str(tmp_path / "out"))
    (part,) = divide([str(folder)])
    (done,) = local.score(job, [part], 1)
    assert (done.images, done.errors) == (21, 2)
    (failed,) = [row for row in rows(tmp_path / "out") if row["error"] == "reading it ended the process"]
    assert failed["name"].endswith("07.png")
    assert complete(job, 0, part) is None


class Fragile(ImageScorer):
    """Ends its process at one of the images."""

    def score_part(self, part):
        if any(piece.path.endswith("07.png") for piece in part):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score_part(part)


def test_a_part_with_a_file_that_could_not_be_read_is_scored_again(tiny_store, folder, tmp_path, monkeypatch):
    """The permission or the connection may be there next time. A file that is no image stays none."""

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    job, (part,) = Job(str(tiny_store / "mnist" / "1"), str(tmp_path)), divide([str(folder)])
    with monkeypatch.context() as patch:
        patch.setattr(sources, "open_file", refuse)
        assert write(job, 0, part, ImageScorer(job).score_part(part)).errors == 21
    assert complete(job, 0, part) is None
    assert rows(tmp_path / "part-00000000.parquet")[0]["error"] == "Permission denied"
    done = write(job, 0, part, ImageScorer(job).score_part(part))
    assert done.errors == 1 and complete(job, 0, part) == done._replace(skipped=True)


def test_a_full_disk_is_a_sentence_with_the_name_of_the_file(tiny_store, tmp_path, monkeypatch):
    """pyarrow's own names none."""

    def refuse(table, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", refuse)
    with pytest.raises(OSError, match=r"part-00000000\.parquet cannot be written: No space"):
        write(Job(str(tiny_store / "mnist" / "1"), str(tmp_path)), 0, [], [])


def test_there_are_processes_for_the_cores_that_may_be_used(tiny_store, folder, tmp_path, monkeypatch):
    """Not for those of the machine, which taskset and containers limit."""
    from app.scaling import local

    processes = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 7}, raising=False)
    monkeypatch.setattr(local, "score", lambda job, parts, count: iter(processes.append(count) or ()))
    score(folder, "--to", tmp_path / "out", "--store", tiny_store)
    assert processes == [3]


def test_an_error_of_a_remote_file_system_is_that_of_one_file(monkeypatch):
    """They raise exceptions of their own, for instance aiohttp's; for a local file, such an exception is a bug."""

    def refuse(path):
        raise RuntimeError("503, message='Service Unavailable'")

    monkeypatch.setattr(sources, "open_file", refuse)
    (item,) = sources.read([sources.Slice("file", "https://host/a.png")], 28)
    assert item == sources.Item("https://host/a.png", None, "503, message='Service Unavailable'", is_unread=True)
    with pytest.raises(RuntimeError):
        list(sources.read([sources.Slice("file", "a.png")], 28))


def test_processes_that_cannot_start_end_the_job(tiny_store, folder, tmp_path, monkeypatch):
    """The images are not to blame: no part is written, so a later run scores them."""
    from app.scaling import local

    monkeypatch.setattr(local, "ImageScorer", lambda job: os.kill(os.getpid(), signal.SIGKILL))
    context = __import__("multiprocessing").get_context("fork")  # so that the processes have the scorer that cannot start
    monkeypatch.setattr(local.multiprocessing, "get_context", lambda kind: context)
    (tmp_path / "out").mkdir()
    job = Job(str(tiny_store / "mnist" / "1"), str(tmp_path / "out"))
    with pytest.raises(local.ProcessesError, match="--processes 1"):
        list(local.score(job, divide([str(folder)]), 1))
    assert not list((tmp_path / "out").iterdir())


def test_each_file_is_decoded_before_the_next_one_is_read(tiny_store, tmp_path, samples, monkeypatch):
    """A batch holds images of the network's size, not files, which may be photographs of many megabytes."""
    from app.scaling import scoring

    events = []

    def items():
        for index in range(3):
            events.append("read")
            yield sources.Item(str(index), (samples / "seven.png").read_bytes())

    def decode(*arguments, **options):
        events.append("decoded")
        return decode_upload(*arguments, **options)

    monkeypatch.setattr(scoring, "decode_upload", decode)
    found = list(ImageScorer(scoring.Job(str(tiny_store / "mnist" / "1"), str(tmp_path))).score(items()))
    assert events == ["read", "decoded"] * 3
    assert [row["name"] for row in found] == ["0", "1", "2"] and not any("error" in row for row in found)


@pytest.mark.parametrize("source", ["missing.png", "missing-*.png", "memory://nothing/here"])
def test_a_source_that_is_not_there_is_a_sentence(tiny_store, tmp_path, source):
    """Exit code 2, and no traceback."""
    path = source if "://" in source else tmp_path / source
    done = score(path, "--to", tmp_path / "out", "--store", tiny_store)
    assert done.exit_code == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_damaged_containers_are_rows_with_errors(tiny_store, tmp_path):
    """Files that claim to be arrays, tar files and Parquet files."""
    for name in ("a.npy", "b.tar", "c.parquet"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"\x93NUMPY\x01\x00" + b"x" * 2000)
    done = score(tmp_path / "in", "--to", tmp_path / "out", "--store", tiny_store, "--processes", 1)
    assert done.exit_code == 0, done.stderr
    assert [bool(row["error"]) for row in rows(tmp_path / "out")] == [True] * 3


def test_parts_have_a_bounded_size(tmp_path, monkeypatch):
    """A large array and many files are divided; the order is that of the sources."""
    monkeypatch.setattr(sources, "PART_IMAGES", 10)
    (tmp_path / "array.npy").write_bytes(npy(IMAGES))
    assert [[(p.start, p.stop) for p in part] for part in divide([str(tmp_path / "array.npy")])] == [
        [(0, 10)],
        [(10, 20)],
        [(20, 30)],
        [(30, 40)],
    ]
    with pytest.raises(SourceError):
        list(divide(["nowhere"]))
