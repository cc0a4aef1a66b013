"""The command `score`."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from live import ROOT, run
from rich.console import Console
from strokes import npy, png, stroke_images

from app.cli import score_inputs
from app.cli.tables import console
from app.scaling.sources import Item

COLUMNS = ["name", "score", "p_value", "is_anomaly", "reconstruction_error", "preprocess", "warnings", "error"]


@pytest.fixture(scope="module")
def score(oddigit, tiny_store):
    """The command `score` on the tiny store."""

    def run(*arguments):
        return oddigit("score", *arguments, "--store", tiny_store)

    return run


@pytest.fixture
def folder(tmp_path):
    """Two images and an array in a folder of folders, and a file that is none of both."""
    (tmp_path / "deep").mkdir()
    one, two, *more = stroke_images(5, seed=13)
    (tmp_path / "a.png").write_bytes(png(one))
    (tmp_path / "deep" / "b.PNG").write_bytes(png(two))
    (tmp_path / "c.npy").write_bytes(npy(np.array(more)))
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def rows(done):
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_folders_and_arrays_are_scored_in_any_mixture(score, folder):
    """A row an image, in the order of the paths; an array's images by their indices; other files of a folder are left out."""
    done = score(folder / "deep" / "b.PNG", folder, "--format", "jsonl")
    assert done.exit_code == 0, done.output
    assert [row["name"] for row in rows(done)] == [
        str(folder / "deep" / "b.PNG"),
        str(folder / "a.png"),
        *(f"{folder / 'c.npy'}[{index}]" for index in range(3)),
        str(folder / "deep" / "b.PNG"),
    ]


def test_the_terminal_scores_as_the_server_does(score, folder, strict_client):
    """The same image has the same score, p-value and verdict on both ways."""
    (row,) = rows(score(folder / "a.png", "--format", "jsonl"))
    body = (folder / "a.png").read_bytes()
    (result,) = strict_client.post("/score", content=body, headers={"content-type": "image/png"}).json()["results"]
    assert row["score"] == pytest.approx(result["score"], rel=1e-5)
    assert {key: row[key] for key in ("p_value", "is_anomaly", "preprocess", "warnings")} == {
        key: result[key] for key in ("p_value", "is_anomaly", "preprocess", "warnings")
    }


def test_csv_has_a_header_and_a_line_an_image(score, folder):
    """What the JSON lines say, as columns."""
    done = score(folder, "--format", "csv")
    table = list(csv.DictReader(io.StringIO(done.stdout)))
    assert list(table[0]) == COLUMNS
    expected = rows(score(folder, "--format", "jsonl"))
    assert [row["name"] for row in table] == [row["name"] for row in expected]
    assert [float(row["score"]) for row in table] == [row["score"] for row in expected]


def test_the_table_is_for_people(score, folder):
    """Every image with its verdict, and the threshold above."""
    done = score(folder)
    assert "mnist/1" in done.stdout
    assert "above" in done.stdout
    assert done.stdout.count("normal") + done.stdout.count("anomaly") >= 5


def test_an_anomaly_fails_where_asked(score, folder):
    """With --fail-on-anomaly the exit code is 1 if and only if something was flagged."""
    for alpha in (0.006, 0.99):
        done = score(folder, "--format", "jsonl", "--alpha", alpha, "--fail-on-anomaly")
        assert done.exit_code == any(row["is_anomaly"] for row in rows(done))
        assert score(folder, "--alpha", alpha).exit_code == 0
    assert done.exit_code == 1


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_a_file_that_cannot_be_read_is_told_and_the_others_scored(score, folder, form):
    """Broken, empty, missing and foreign files have a row with the reason; the exit code is 2, anomalies or not."""
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:60])
    (folder / "empty.png").write_bytes(b"")
    (folder / "hollow").mkdir()
    paths = [folder / name for name in ("a.png", "broken.png", "empty.png", "missing.png", "notes.txt", "hollow", "deep")]
    done = score(*paths, "--format", form, "--fail-on-anomaly", "--alpha", "0.99")
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    if form == "jsonl":
        assert [("error" in row, os.path.basename(row["name"])) for row in rows(done)] == [  # noqa: PTH119
            (False, "a.png"), (True, "broken.png"), (True, "empty.png"), (True, "missing.png"), (True, "notes.txt"),
            (True, "hollow"), (False, "b.PNG"),
        ]  # fmt: skip
        assert all(len(row["error"]) > 10 for row in rows(done) if "error" in row)


def test_a_name_that_is_too_long_and_a_closed_folder_are_rows_too(score, folder, monkeypatch):
    """The images beside them are scored."""
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    done = score(folder / ("a" * 300 + ".png"), folder, folder / "a.png", "--format", "jsonl")
    assert done.exit_code == 2, done.output
    long, deep, *others = rows(done)
    assert long["error"] == "File name too long"
    assert (deep["name"], deep["error"]) == (str(folder / "deep"), "Permission denied")
    assert [row["name"].rpartition("/")[2] for row in others] == ["a.png", "c.npy[0]", "c.npy[1]", "c.npy[2]", "a.png"]
    assert not any("error" in row for row in others)


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
@pytest.mark.parametrize(
    "name", ["[red]a[", "[/b].png", "[red].png", "[link=x].png", "a\nb.png", "ü七.png", "=1+1.png", 'a",b.png']
)
def test_any_file_name_can_be_written(score, tmp_path, name, form):
    """Brackets, line ends, commas and letters of any script are part of the name and nothing else."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(png(stroke_images(1, seed=0)[0]))
    done = score(tmp_path / name, "--format", form)
    assert done.exit_code == 0, repr(done.exception)
    if form == "jsonl":
        assert rows(done)[0]["name"] == str(tmp_path / name)
    elif form == "csv":
        assert next(csv.DictReader(io.StringIO(done.stdout, newline="")))["name"] == str(tmp_path / name)
    else:  # in one row, whatever the name
        assert name.replace("\n", "\\n") in done.stdout.replace("\n", "")
        assert sum("normal" in line or "anomaly " in line for line in done.stdout.splitlines()[1:-1]) == 1


@pytest.mark.parametrize("width", [60, 80])
def test_a_narrow_table_cuts_nothing(score, tmp_path, monkeypatch, width):
    """Long paths that differ in their ends can be told apart, and scores and verdicts are whole."""
    folder = tmp_path / "folder-with-a-long-name" / "another-folder-with-a-long-name"
    folder.mkdir(parents=True)
    for name in ("one.png", "two.png"):
        (folder / name).write_bytes(png(stroke_images(1, seed=0)[0]))
    monkeypatch.setattr("app.cli.tables.console", lambda pipe_width: Console(width=width))
    lines = score(folder).stdout.splitlines()[2:-1]
    assert "".join(line[1:].split("  ")[0].strip() for line in lines) == f"{folder}/one.png{folder}/two.png"
    found = rows(score(folder, "--format", "jsonl"))
    for row, line in zip(found, [line for line in lines if "  " in line.strip()], strict=True):
        assert line.split()[1:] == [
            f"{row['score']:.3f}",
            f"{row['p_value']:.3g}",
            "anomaly" if row["is_anomaly"] else "normal",
        ]


def test_names_inside_of_a_file_are_escaped_too(score, tmp_path):
    """The arrays of an .npz, which its error lists, must not move the cursor either."""
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a\x1b[2J\nb.npy", b"")
        archive.writestr("c.npy", b"")
    for form in ("table", "csv"):
        done = score(tmp_path, "--format", form)
        assert "\x1b" not in done.stdout and "it holds a" in done.stdout


@pytest.mark.parametrize(("columns", "width"), [("30", 60), ("100", 100)])
def test_a_table_has_60_columns_at_least(monkeypatch, columns, width):
    """In a narrower terminal the figures would be cut."""
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert console().width == width


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_a_file_name_that_is_no_text_can_be_written(score, tmp_path, form):
    """A name of bytes that are no UTF-8 does not end the run."""
    path = tmp_path / os.fsdecode(b"\xff\xfe.png")
    path.write_bytes(png(stroke_images(1, seed=0)[0]))
    assert score(tmp_path, "--format", form).exit_code == 0


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_control_characters_of_a_name_are_escaped(score, tmp_path, form):
    """A file must not colour the terminal, set its title or move its cursor, whether it can be read or not."""
    for name in ("\x1b[31mred.png", "\x1b]0;title\x07.png", "back\b\b\r.png", "\x9b2J.png", "\u202egnp.png"):
        (tmp_path / name).write_bytes(png(stroke_images(1, seed=0)[0]))
    (tmp_path / "\x1b[2Jbroken.png").write_bytes(b"")
    done = score(tmp_path, "--format", form)
    assert done.exit_code == 2
    assert all(character.isprintable() or character in "\r\n" for character in done.stdout)
    assert done.stdout.count("\r") == (done.stdout.count("\r\n") if form == "csv" else 0)
    assert "broken.png" in done.stdout


def test_control_characters_of_a_name_are_escaped_in_errors(oddigit, tmp_path):
    """As in rows."""
    done = oddigit("score", tmp_path, "--store", tmp_path / "\x1b[31mstore")
    assert done.exit_code == 2
    assert "\x1b" not in done.output


@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_only_regular_files_are_read_unless_asked(score, tmp_path, form):
    """A FIFO that nobody writes to would wait forever, a device never end; links to regular files are followed."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "good.png").write_bytes(png(stroke_images(1, seed=0)[0]))
    (tmp_path / "link.png").symlink_to(tmp_path / "good.png")
    for paths in ([tmp_path], sorted(tmp_path.iterdir())):
        done = score(*paths, "--format", form)
        assert done.exit_code == 2
        assert done.stdout.count("not a regular file") == 2
        if form == "jsonl":
            assert ["error" in row for row in rows(done)] == [True, False, False, True]


def test_a_fifo_is_read_where_that_is_asked_for(score, tmp_path):
    """`--any-file` is for process substitution: oddigit score --any-file <(curl ...)."""
    os.mkfifo(tmp_path / "pipe.png")
    image = png(stroke_images(1, seed=0)[0])
    with ThreadPoolExecutor(1) as pool:
        pool.submit((tmp_path / "pipe.png").write_bytes, image)
        done = score(tmp_path / "pipe.png", "--any-file", "--format", "jsonl")
    assert done.exit_code == 0
    assert rows(done)[0]["score"] > 0


@pytest.mark.parametrize("suffix", [".npy", ".NPY"])
def test_arrays_are_known_by_their_ending_in_any_case(score, tmp_path, suffix):
    """As images are."""
    (tmp_path / f"a{suffix}").write_bytes(npy(stroke_images(2, seed=0)))
    assert score(tmp_path).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [("--alpha", "0"), ("--alpha", "1"), ("--alpha", "nan"), ("--alpha", "x"), ("--alpha", "0.001"), ("--version", "0"),
     ("--version", "9"), ("--model", "none"), ("--model", "../mnist"), ("--device", "gpu"), ("--preprocess", "some"),
     ("--format", "xml"), ("--nonsense",)],
    ids=" ".join,
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_refused(score, folder, arguments):
    """Exit code 2 and a sentence, no trace."""
    done = score(folder, *arguments)
    assert done.exit_code == 2
    assert done.stderr.strip()
    assert "Traceback" not in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(("--to", "out", "--format", "csv"), "--format"), (("--to", "out", "--any-file"), "--any-file"),
     (("--engine", "local"), "--engine"), (("--processes", "2"), "--processes")],
)  # fmt: skip
def test_an_option_without_effect_is_refused(score, folder, monkeypatch, arguments, name):
    """With the name of the option, and nothing is written."""
    monkeypatch.chdir(folder)
    done = score("a.png", *arguments)
    assert done.exit_code == 2 and name in done.stderr and "no effect" in done.stderr
    assert not (folder / "out").exists()


def test_a_thousand_images_keep_their_order(score, tmp_path):
    """Batches leave no seam: an array larger than several of them has its rows in order."""
    images = stroke_images(1000, seed=14)
    (tmp_path / "many.npy").write_bytes(npy(images))
    (tmp_path / "few.npy").write_bytes(npy(images[600:610]))
    many, few = (rows(score(tmp_path / name, "--format", "jsonl")) for name in ("many.npy", "few.npy"))
    assert [row["name"].partition("[")[2] for row in many] == [f"{index}]" for index in range(1000)]
    np.testing.assert_allclose([row["score"] for row in many[600:610]], [row["score"] for row in few], rtol=1e-5)


def test_standard_input_is_read(oddigit, tiny_store, folder):
    """An image or an array, by its content."""
    for name, count in (("a.png", 1), ("c.npy", 3)):
        data = (folder / name).read_bytes()
        done = oddigit("score", "-", "--format", "jsonl", "--store", tiny_store, input=data)
        assert len(rows(done)) == count and rows(done)[0]["name"].startswith("standard input"), done.output


def test_a_closed_standard_input_is_a_row_with_an_error(monkeypatch):
    """As after `<&-` of a shell."""
    monkeypatch.setattr(score_inputs.sys, "stdin", None)
    assert list(score_inputs.read_all(["-"], 28, False)) == [Item("standard input", None, "it is closed")]


def test_archives_of_arrays_are_read(score, tmp_path):
    """The array `images`, or the only one; another archive is told with what it holds."""
    images = stroke_images(3, seed=1)
    np.savez(tmp_path / "named.npz", images=images, labels=np.arange(3))
    np.savez(tmp_path / "only.npz", images.reshape(3, 784))
    np.savez(tmp_path / "other.npz", a=images, b=images)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04")
    done = score(tmp_path, "--format", "jsonl")
    assert [row.get("error") for row in rows(done)][1:] == [None] * 6 + ["the .npz holds no array 'images'; it holds a, b"]
    assert "damaged .npz" in rows(done)[0]["error"]


def test_an_encrypted_archive_is_not_called_damaged(score, tmp_path):
    """zipfile's own sentence shows a Python object."""
    np.savez(tmp_path / "a.npz", images=stroke_images(1, seed=0))
    packed = bytearray((tmp_path / "a.npz").read_bytes())
    packed[6] |= 1
    packed[packed.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(packed)
    (row,) = rows(score(tmp_path / "a.npz", "--format", "jsonl"))
    assert row["error"] == "the .npz is encrypted; save it without a password"


def test_patterns_are_expanded(score, folder):
    """For shells that do not, and for `**`."""
    names = [row["name"] for row in rows(score(folder / "**" / "*.png", folder / "deep" / "*.PNG", "--format", "jsonl"))]
    assert names == [str(folder / "a.png"), str(folder / "deep" / "b.PNG")]


def test_a_summary_ends_the_output(score, folder):
    """Below the table; on standard error where standard output is for machines."""
    (folder / "broken.png").write_bytes(b"")
    assert "5 images: " in score(folder).stdout.splitlines()[-1]
    assert "1 image: " in score(folder / "a.png").stdout.splitlines()[-1]
    done = score(folder, "--format", "jsonl")
    assert "5 images: " in done.stderr and "1 could not be scored" in done.stderr
    assert "images: " not in done.stdout


def test_ctrl_c_keeps_what_there_is(tiny_store, tmp_path):
    """The rows so far and the summary are written, and the exit code is 130."""
    for index, image in enumerate(stroke_images(300, seed=2)):
        (tmp_path / f"{index:03}.png").write_bytes(png(image))
    os.mkfifo(tmp_path / "zzz")
    command = [sys.executable, "-m", "app", "score", tmp_path, tmp_path / "zzz", "--any-file", "--format", "jsonl"]
    process = subprocess.Popen(
        [*map(str, command), "--store", str(tiny_store)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    for _ in range(256):  # a whole batch; then it waits for the FIFO
        process.stdout.readline()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"256 images: " in errors and b"Stopped by Ctrl-C" in errors and b"Traceback" not in errors


def test_the_command_works_as_a_user_types_it(tiny_store, samples):
    """`python -m app score` in a process of its own: the table on standard output, the exit code by the verdicts."""
    done = run(sys.executable, "-m", "app", "score", str(samples / "seven.png"), "--store", str(tiny_store))
    assert (done.returncode, done.stderr) == (0, "")
    assert "seven.png" in done.stdout
