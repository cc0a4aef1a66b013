"""The command `evaluate`."""

import json

import numpy as np


def test_evaluate(oddigit, trained, tmp_path):
    """A table for people, JSON for machines, pictures in the folder asked for, and the version as it was."""
    before = sorted(trained.rglob("*"))
    np.save(tmp_path / "noise.npy", np.random.RandomState(0).randint(0, 256, (50, 28, 28)).astype(np.uint8))
    options = ["--store", trained, "--model", "strokes", "--out", tmp_path / "out", "--device", "cpu"]
    table = oddigit("evaluate", tmp_path / "noise.npy", tmp_path / "noise.npy", *options)
    assert table.exit_code == 0, table.output
    assert "noise-2" in table.output and "false alarms" in table.output
    printed = oddigit("evaluate", tmp_path / "noise.npy", *options, "--json")
    assert json.loads(printed.stdout) == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (tmp_path / "out" / "roc.png").is_file()
    assert sorted(trained.rglob("*")) == before


def test_a_set_with_the_name_of_the_normal_images_gets_another_name(oddigit, trained, tmp_path):
    """No picture overwrites that of the normal images."""
    for folder, seed in (("good", 0), ("bad", 1)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "digits.npy", np.random.RandomState(seed).randint(0, 256, (50, 28, 28)).astype(np.uint8))
    options = [
        "--normal",
        tmp_path / "good" / "digits.npy",
        "--store",
        trained,
        "--model",
        "strokes",
        "--out",
        tmp_path / "out",
    ]
    printed = oddigit("evaluate", tmp_path / "bad" / "digits.npy", *options, "--device", "cpu")
    assert printed.exit_code == 0, printed.output
    assert {"extremes_digits.png", "extremes_digits-2.png"} <= {each.name for each in (tmp_path / "out").iterdir()}
