"""The commands as a user meets them: what they print, where they write, how they exit."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from live import ROOT
from strokes import stroke_images
from typer.testing import CliRunner

from app.cli.commands import cli
from app.detection import store


def run(*arguments):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def trained(strokes_file, tmp_path_factory):
    """A store with one version, trained by the command."""
    root = tmp_path_factory.mktemp("trained")
    options = ["--data", strokes_file, "--epochs", 2, "--alpha", 0.05, "--device", "cpu", "--scorer", "mse"]
    result = run("train", *options, "--store", root)
    assert result.exit_code == 0, result.output
    assert "epoch 2/2" in result.output and "Published strokes/1" in result.output
    return root


def normal_images(path, count, seed):
    np.save(path, stroke_images(count, seed=seed))
    return path


def test_commands_start_light():
    """Reading the help loads neither torch nor any of the training's packages."""
    heavy = ("torch", "torchvision", "matplotlib", "sklearn", "scipy")
    code = f"import sys, app.cli.commands; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["train", "evaluate", "calibrate"])
def test_help(name):
    """Every command explains itself."""
    result = run(name, "--help")
    assert result.exit_code == 0 and "--data" in result.output


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
def test_errors_are_one_sentence(strokes_file, tmp_path, arguments, words):
    """What a user can put right is told in one sentence on stderr, with exit code 2, and nothing is written."""
    filled = [argument.format(strokes=strokes_file) for argument in arguments]
    result = run(*filled, "--store", tmp_path / "store")
    assert result.exit_code == 2
    assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "store").exists()


def test_interrupt_says_how_to_continue(strokes_file, tmp_path):
    """Ctrl-C ends a training with exit code 130 and the way to go on."""
    options = ["--data", strokes_file, "--store", tmp_path, "--epochs", "5000", "--alpha", "0.05", "--device", "cpu"]
    command = [sys.executable, "-m", "app", "train", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    os.kill(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in complaint and "Traceback" not in complaint


def test_evaluate(trained, tmp_path):
    """A table for people, JSON for machines, pictures in the folder asked for, and the version as it was."""
    before = sorted(trained.rglob("*"))
    np.save(tmp_path / "noise.npy", np.random.RandomState(0).randint(0, 256, (50, 28, 28)).astype(np.uint8))
    options = ["--store", trained, "--model", "strokes", "--out", tmp_path / "out", "--device", "cpu"]
    table = run("evaluate", tmp_path / "noise.npy", tmp_path / "noise.npy", *options)
    assert table.exit_code == 0, table.output
    assert "noise-2" in table.output and "false alarms" in table.output
    printed = run("evaluate", tmp_path / "noise.npy", *options, "--json")
    assert json.loads(printed.stdout) == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (tmp_path / "out" / "roc.png").is_file()
    assert sorted(trained.rglob("*")) == before


def test_calibrate_on_other_normals(trained, tmp_path):
    """500 images of another kind give a version whose false-alarm rate on 500 further ones is as asked."""
    first = normal_images(tmp_path / "first.npy", 500, 21)
    further = normal_images(tmp_path / "further.npy", 500, 22)
    options = ["--store", trained, "--model", "strokes", "--device", "cpu"]
    result = run("calibrate", "--data", first, *options, "--alpha", "0.05", "--name", "others")
    assert result.exit_code == 0, result.output
    card = store.load_card(trained / "others" / "1")
    assert card.calibration_images == 500 and card.training["calibrated_from"] == "strokes/1"
    options = ["--store", trained, "--model", "others", "--normal", further, "--out", tmp_path / "out", "--json"]
    rates = {each["alpha"]: each["value"] for each in json.loads(run("evaluate", *options).stdout)["false_alarms"]}
    assert 0.02 <= rates[0.05] <= 0.09


def test_calibrate_on_the_training_set_takes_unseen_images(trained, strokes_file):
    """On the set of its own training, a model is calibrated on the images that were held back."""
    options = ["--store", trained, "--model", "strokes", "--name", "again", "--device", "cpu"]
    result = run("calibrate", "--data", strokes_file, *options, "--alpha", "0.1")
    assert result.exit_code == 0, result.output
    again, first = store.load(trained / "again" / "1"), store.load(trained / "strokes" / "1")
    assert np.allclose(again.calibration.scores, first.calibration.scores, rtol=1e-5)


def test_calibrate_says_how_many_images_are_needed(trained, tmp_path):
    """Too few images for the rate asked for are refused with their number."""
    few = normal_images(tmp_path / "few.npy", 50, 23)
    result = run("calibrate", "--data", few, "--store", trained, "--model", "strokes", "--alpha", "0.01")
    assert result.exit_code == 2 and "at least 99 calibration images" in result.stderr


def test_adopt_weights(trained, strokes_file, tmp_path):
    """A bare state_dict becomes a version that holds the same weights."""
    original = trained / "strokes" / "1" / store.WEIGHTS
    options = ["--data", strokes_file, "--store", tmp_path, "--alpha", "0.05", "--device", "cpu", "--scorer", "mse"]
    result = run("calibrate", "--weights", original, *options)
    assert result.exit_code == 0, result.output
    adopted = torch.load(tmp_path / "strokes" / "1" / store.WEIGHTS, weights_only=True)
    for name, tensor in torch.load(original, weights_only=True).items():
        assert torch.equal(tensor, adopted[name])
    assert store.load(tmp_path / "strokes" / "1").card.training == {"adopted_from": store.WEIGHTS}
