"""The command line as a whole: how it starts, explains itself and reports errors."""

import subprocess
import sys

import pytest
from live import ROOT

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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--data", "nowhere"), "There is no data set"),
        (("train", "--data", "{strokes}", "--alpha", "0.0001"), "calibration images"),
        (("train", "--data", "{strokes}", "--alpha", "2"), "alpha must lie"),
        (("train", "--data", "{strokes}", "--device", "warp"), "is not a device"),
        (("train", "--data", "{strokes}", "--scorer", "guess"), "no scorer"),
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
