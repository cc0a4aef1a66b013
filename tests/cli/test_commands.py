"""The command line as a whole: how it starts, explains itself and reports errors."""

import os
import socket
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
import torch
from live import ROOT
from strokes import png, stroke_images

from app.detection.store_path import SHIPPED_STORE

SCORE_AND_LIST_HEAVY_MODULES = """
import sys
from typer.testing import CliRunner
from app.cli.commands import cli
done = CliRunner().invoke(cli, ["score", *sys.argv[1:]])
assert done.exit_code == 0, done.output
print([name for name in ("torch", "torchvision", "matplotlib", "sklearn", "scipy", "onnx") if name in sys.modules])
"""


def test_scoring_on_a_cpu_loads_no_torch(tiny_store, samples):
    """Neither the command line nor `score` imports torch or another package of the training extra."""
    arguments = [str(samples / "seven.png"), "--store", str(tiny_store), "--device", "cpu"]
    command = [sys.executable, "-c", SCORE_AND_LIST_HEAVY_MODULES, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["", "train", "evaluate", "calibrate", "score", "models", "export", "serve"])
def test_every_command_has_help(oddigit, command):
    """A sentence on what it does, and a sentence for every option."""
    done = oddigit(*([command] if command else []), "--help", terminal_width=200)
    assert done.exit_code == 0
    assert len(done.stdout.splitlines()) > 5


def test_the_version_is_printed(oddigit):
    """The version of the installed package."""
    assert oddigit("--version").stdout == f"oddigit {version('oddigit')}\n"


PRINTING = [("score", "seven.png"), ("score", "seven.png", "--format", "csv"), ("score", "seven.png", "--format", "jsonl"),
            ("score", "seven.png", "--to", "{out}"), ("models",), ("models", "--json"), ("--version",)]  # fmt: skip


def run_with_output(arguments, store, out, redirection="", **streams):
    """The command in a process of its own, with a standard output as the shell's `redirection` or `streams` say."""
    arguments = [argument.format(out=out) for argument in arguments]
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "app", *arguments]
    variables = {"ODDIGIT_STORE": str(store), "PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    return subprocess.run(command, cwd=ROOT / "tests/samples", env=variables, stderr=subprocess.PIPE, text=True, **streams)


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_a_closed_pipe_ends_a_command_quietly(tiny_store, tmp_path, arguments):
    """With 128 + SIGPIPE, as other programs end; 1 would say that an anomaly was found."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:  # noqa: PTH123 - a descriptor
        done = run_with_output(arguments, tiny_store, tmp_path / "out", stdout=closed)
    assert (done.returncode, done.stderr) == (141, "")


def test_serve_needs_no_standard_output(tiny_store, tmp_path):
    """A service manager may close it. Here the port is taken, so that the command ends."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_with_output(("serve", "--port", str(taken.getsockname()[1])), tiny_store, tmp_path, ">&-")
    assert "cannot be used" in done.stderr


def test_a_closed_pipe_behind_both_streams_ends_a_command_quietly(tiny_store, tmp_path):
    """As in `oddigit score x.png 2>&1 | true`, where the sentence of an error cannot be written either."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as closed:  # noqa: PTH123 - a descriptor
        done = run_with_output(("score", "none.png"), tiny_store, tmp_path / "out", "2>&1", stdout=closed)
    assert done.returncode == 141


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
@pytest.mark.parametrize(("redirection", "words"), [(">&-", "Standard output is closed"), (">/dev/full", "No space left")])
def test_an_output_that_cannot_be_written_is_a_sentence(tiny_store, tmp_path, arguments, redirection, words):
    """Exit code 2, as for other files."""
    done = run_with_output(arguments, tiny_store, tmp_path / "out", redirection)
    assert done.returncode == 2
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_closed_standard_error_changes_nothing(tiny_store, tmp_path):
    """The results are written all the same."""
    done = run_with_output(("score", "seven.png"), tiny_store, tmp_path / "out", "2>&-", stdout=subprocess.PIPE)
    assert (done.returncode, "seven.png" in done.stdout) == (0, True)


WRONG = {  # label: (arguments, words of the message); {a} is a folder with what they name
    "a misspelt data set": (["train", "--data", "mnits"], ["no data set 'mnits'", "mnist, fashion-mnist", "path of a folder"]),
    "an empty folder": (["train", "--data", "{a}/empty"], ["holds no images"]),
    "a folder of texts": (["train", "--data", "{a}/texts"], ["holds no images; skipped:", "a.txt"]),
    "broken files with --strict": (["train", "--data", "{a}/mixed", "--strict"], ["2 files", "broken.png", "a.txt"]),
    "an array of floats": (["train", "--data", "{a}/floats.npy"], ["float64", "must be uint8 [N, 28, 28]"]),
    "too few images": (["calibrate", "--data", "{a}/few.npy"], ["at least 99 calibration images", "larger alpha"]),
    "a percentage": (["train", "--data", "{a}/few.npy", "--alpha", "5"], ["alpha must lie between 0 and 1"]),
    "weights of another network": (["calibrate", "--data", "{a}/few.npy", "--weights", "{a}/w.pth"], ["fc.weight [10, 784]"]),
    "another detector": (["score", "x.png", "--model", "mnits"], ["no detector named 'mnits'", "there is mnist"]),
    "another version": (["evaluate", "--version", "99"], ["no version 99", "there is "]),
    "a misspelt option": (["score", "x.png", "--modle", "mnist"], ["No such option", "--model"]),
    "another scorer": (["train", "--data", "{a}/few.npy", "--scorer", "guess"], ["'guess' is not one of", "residual", "mse"]),
    "another format": (["score", "x.png", "--format", "xml"], ["'xml' is not one of", "table", "jsonl", "csv"]),
    "a misspelt command": (["scroe", "x.png"], ["No such command", "score"]),
    "a missing file": (["score", "{a}/none.png"], ["none.png", "No such file"]),
    "a pattern without files": (["score", "{a}/*.jpeg"], ["the pattern matches no file"]),
    "a device that is not there": (["score", "{a}/few.npy", "--device", "gpu"], ["'gpu' is not a device", "auto, cpu, cuda"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong_files(tmp_path_factory):
    """Folders and files that the wrong commands name."""
    root = tmp_path_factory.mktemp("wrong")
    for folder in ("empty", "texts", "mixed"):
        (root / folder).mkdir()
    for folder in ("texts", "mixed"):
        (root / folder / "a.txt").write_text("hello")
    good = png(stroke_images(1, seed=0)[0])
    (root / "mixed" / "good.png").write_bytes(good)
    (root / "mixed" / "broken.png").write_bytes(good[:60])
    np.save(root / "floats.npy", stroke_images(3, seed=0) / 255)
    np.save(root / "few.npy", stroke_images(30, seed=0))
    torch.save({"fc.weight": torch.zeros(10, 784)}, root / "w.pth")
    return root


@pytest.mark.parametrize("label", WRONG)
def test_the_message_alone_says_what_to_do(oddigit, wrong_files, shipped_store, tmp_path, label):
    """Wrong commands as people type them: exit code 2, no trace, and the words that help."""
    arguments, words = WRONG[label]
    store = {"ODDIGIT_STORE": f"{tmp_path / 'store'}:{shipped_store}"}
    done = oddigit(*(argument.format(a=wrong_files) for argument in arguments), env=store)
    assert done.exit_code == 2, done.output
    text = " ".join(done.output.replace("│", " ").split())
    assert [word for word in words if word not in text] == [], done.output
    assert "Traceback" not in done.output and not (tmp_path / "store").exists()


@pytest.mark.parametrize("arguments", [("train",), ("calibrate", "--model", "strokes"), ("calibrate", "--weights", "w.pth")])
def test_a_store_that_cannot_be_written_is_told_before_any_work(oddigit, trained, tmp_path, arguments):
    """Before the images are read, and nothing is left in a store that can be written."""
    (tmp_path / "file").touch()
    before = sorted(trained.rglob("*"))
    for own, refused in ((tmp_path / "file", True), (trained, False)):
        done = oddigit(*arguments, "--data", "nowhere", "--store", f"{own}:{trained}")
        assert (done.exit_code, "cannot be written: Not a directory" in done.stderr) == (2, refused), done.stderr
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [("train", "--data", "nowhere"), ("calibrate", "--data", "nowhere"), ("pull", "{pushed}"), ("export", "--publish")],
    ids=" ".join,
)
def test_without_a_home_the_shipped_store_is_read_and_not_written(oddigit, samples, tiny_store, tmp_path, arguments):
    """The sentence says how to name a store. To score images, none is needed."""
    homeless = {"HOME": "", "XDG_DATA_HOME": "", "ODDIGIT_STORE": ""}
    assert oddigit("push", tmp_path, "--store", tiny_store).exit_code == 0
    before = sorted(SHIPPED_STORE.rglob("*"))
    done = oddigit(*(argument.format(pushed=tmp_path) for argument in arguments), env=homeless)
    assert (done.exit_code, "--store or ODDIGIT_STORE" in done.stderr) == (2, True), done.output
    assert sorted(SHIPPED_STORE.rglob("*")) == before
    assert oddigit("score", samples / "seven.png", env=homeless).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--data", "nowhere"), "There is no data set"),
        (("train", "--data", "{strokes}", "--alpha", "0.0001"), "calibration images"),
        (("train", "--data", "{strokes}", "--alpha", "2"), "alpha must lie"),
        (("train", "--data", "{strokes}", "--device", "warp"), "is not a device"),
        (("train", "--data", "{strokes}", "--name", "a/b"), "name must"),
        (("train", "--data", "{strokes}", "--alpha", "0.05", "--resume"), "no interrupted training"),
        (("evaluate", "--model", "none"), "no detector"),
        (("calibrate", "--data", "{strokes}", "--weights", "missing.pth"), "missing.pth"),
    ],
)
def test_errors_are_one_sentence(oddigit, strokes_file, tmp_path, arguments, words):
    """What a user can put right is told in one sentence on stderr, with exit code 2, and nothing is written."""
    filled = [argument.format(strokes=strokes_file) for argument in arguments]
    result = oddigit(*filled, "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()
