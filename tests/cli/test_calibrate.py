"""The command `calibrate`."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from strokes import stroke_images

from app.detection import store


def normal_images(path, count, seed):
    np.save(path, stroke_images(count, seed=seed))
    return path


def test_calibrate_on_other_normals(oddigit, trained, tmp_path):
    """500 images of another kind give a version whose false-alarm rate on 500 further ones is as asked."""
    first = normal_images(tmp_path / "first.npy", 500, 21)
    further = normal_images(tmp_path / "further.npy", 500, 22)
    options = ["--store", trained, "--model", "strokes", "--device", "cpu"]
    result = oddigit("calibrate", "--data", first, *options, "--alpha", "0.05", "--name", "others")
    assert result.exit_code == 0, result.output
    card = store.load_card(trained / "others" / "1")
    assert card.calibration_images == 500 and card.training["calibrated_from"] == "strokes/1"
    options = ["--store", trained, "--model", "others", "--normal", further, "--out", tmp_path / "out", "--json"]
    rates = {each["alpha"]: each["value"] for each in json.loads(oddigit("evaluate", *options).stdout)["false_alarms"]}
    assert 0.02 <= rates[0.05] <= 0.09


def test_calibrate_on_the_training_set_takes_unseen_images(oddigit, trained, strokes_file):
    """On the set of its own training, a model is calibrated on the images that were held back."""
    options = ["--store", trained, "--model", "strokes", "--name", "again", "--device", "cpu"]
    result = oddigit("calibrate", "--data", strokes_file, *options)
    assert result.exit_code == 0, result.output
    again, first = store.load(trained / "again" / "1"), store.load(trained / "strokes" / "1")
    assert again.card.alpha == first.card.alpha == 0.05
    assert np.allclose(again.calibration.scores, first.calibration.scores, rtol=1e-5)


def test_a_preparation_can_be_taken_away_but_not_given(oddigit, trained, tmp_path):
    """Calibrated with none, a detector only resizes uploads, and its commands do; digit needs a training."""
    first = normal_images(tmp_path / "first.npy", 200, 21)
    options = ["--store", trained, "--device", "cpu", "--data", first, "--alpha", "0.1"]
    result = oddigit("calibrate", *options, "--model", "strokes", "--preprocess", "none", "--name", "resized")
    assert result.exit_code == 0 and "only resized" in result.output, result.output
    assert store.load_card(trained / "resized" / "1").preprocess == "none"
    Image.fromarray(255 - stroke_images(1, seed=1)[0]).resize((60, 40)).save(tmp_path / "a.png")
    for asked, steps in ((), ["resized"]), (("--preprocess", "digit"), ["inverted", "cropped", "thinned", "centred"]):
        done = oddigit("score", tmp_path / "a.png", "--store", trained, "--model", "resized", "--format", "jsonl", *asked)
        assert json.loads(done.stdout)["preprocess"] == steps
        assert bool(json.loads(done.stdout)["warnings"]) == bool(asked)  # prepared otherwise than calibrated
    done = oddigit("score", tmp_path / "a.png", "--store", trained, "--model", "resized", "--to", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert pq.read_table(tmp_path / "out").to_pylist()[0]["preprocess"] == ["resized"]
    result = oddigit("calibrate", *options, "--model", "resized", "--preprocess", "digit")
    assert result.exit_code == 2 and "train it with --preprocess digit" in result.stderr


def test_calibrate_says_how_many_images_are_needed(oddigit, trained, tmp_path):
    """Too few images for the rate asked for are refused with their number."""
    few = normal_images(tmp_path / "few.npy", 50, 23)
    result = oddigit("calibrate", "--data", few, "--store", trained, "--model", "strokes", "--alpha", "0.01")
    assert result.exit_code == 2 and "at least 99 calibration images" in result.stderr


@pytest.mark.parametrize("wrong", [("--alpha", "5"), ("--alpha", "0"), ("--alpha", "-1"), ("--name", "Mine")], ids=" ".join)
def test_what_makes_no_sense_is_refused_before_any_work(oddigit, trained, strokes_file, wrong):
    """In a sentence."""
    result = oddigit("calibrate", "--data", strokes_file, "--store", trained, "--model", "strokes", *wrong)
    assert result.exit_code == 2 and wrong[0].strip("-") in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "name"),
    [(("--weights", "w.pth", "--model", "nope"), "--model"), (("--weights", "w.pth", "--version", "99"), "--version"),
     (("--scorer", "mse"), "--scorer"), (("--calibration-share", "0.5"), "--calibration-share"), (("--seed", "1"), "--seed")],
)  # fmt: skip
def test_an_option_without_effect_is_refused(oddigit, trained, strokes_file, arguments, name):
    """With its name: weights come from a file or from the store, and only with a file is a scorer fitted."""
    done = oddigit("calibrate", "--data", strokes_file, "--store", trained, *arguments)
    assert done.exit_code == 2 and name in done.stderr and "no effect" in done.stderr


def test_a_changed_training_set_is_noticed(oddigit, trained, strokes_file, tmp_path, caplog):
    """Its images were learnt from; the threshold would be too low."""
    changed = tmp_path / strokes_file.name
    np.savez(changed, images=np.load(strokes_file)["images"][:-1])
    options = ["--store", trained, "--model", "strokes", "--device", "cpu", "--alpha", "0.1", "--name", "changed"]
    assert oddigit("calibrate", "--data", changed, *options).exit_code == 0
    assert "trained on a set of the same name" in caplog.text


def test_import_weights(oddigit, trained, strokes_file, tmp_path):
    """A bare state_dict becomes a version that holds the same weights."""
    original = trained / "strokes" / "1" / store.WEIGHTS
    options = ["--data", strokes_file, "--store", tmp_path, "--alpha", "0.05", "--device", "cpu", "--scorer", "mse"]
    result = oddigit("calibrate", "--weights", original, *options)
    assert result.exit_code == 0, result.output
    imported = torch.load(tmp_path / "strokes" / "1" / store.WEIGHTS, weights_only=True)
    for name, tensor in torch.load(original, weights_only=True).items():
        assert torch.equal(tensor, imported[name])
    assert store.load(tmp_path / "strokes" / "1").card.training == {"imported_from": store.WEIGHTS}
