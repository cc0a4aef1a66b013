"""The command `models`."""

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

from app.detection import store
from app.detection.store import CARD


def test_models_lists_what_is_in_the_store(oddigit, tiny_store):
    """Name, version and threshold of every version."""
    done = oddigit("models", "--store", tiny_store)
    assert done.exit_code == 0
    assert "mnist" in done.stdout
    assert "0.01" in done.stdout


def test_models_tells_which_version_is_not_usable(oddigit, tiny_store, tmp_path):
    """A damaged version stands in the list with the reason; the others are listed all the same."""
    root = tmp_path / "[b]store"
    shutil.copytree(tiny_store, root)
    shutil.copytree(root / "mnist" / "1", root / "mnist" / "2")
    (root / "mnist" / "2" / CARD).write_text("{}")
    done = oddigit("models", "--store", root)
    assert done.exit_code == 0, repr(done.exception)
    assert "not usable" in done.stdout


def test_models_lists_the_others_where_a_detector_cannot_be_read(oddigit, tiny_bundle, tmp_path, monkeypatch):
    """With the reason in place of its versions."""
    for name in ("closed", "mnist"):
        store.publish(replace(tiny_bundle, card=tiny_bundle.card.model_copy(update={"name": name})), tmp_path)
    iterdir = Path.iterdir

    def refuse(path):
        if path.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refuse)
    done = oddigit("models", "--store", tmp_path)
    assert done.exit_code == 0, repr(done.exception)
    closed, mnist = done.stdout.splitlines()[1:]
    assert "closed" in closed and "not usable" in closed and "mnist" in mnist
    closed, mnist = json.loads(oddigit("models", "--store", tmp_path, "--json").stdout)
    assert (closed["name"], closed["in_use"], mnist["in_use"]) == ("closed", False, True)
    assert "Permission denied" in closed["error"]


def test_models_of_an_empty_store_says_what_to_do(oddigit, tmp_path):
    """Exit code 2 and the command that makes a detector."""
    done = oddigit("models", "--store", tmp_path)
    assert done.exit_code == 2
    assert "oddigit train" in done.stderr


def test_models_says_which_version_is_in_use(oddigit, tiny_bundle, tmp_path):
    """Of the folders of a store path the first one that has the detector counts, whatever the numbers of the versions."""
    own, shipped = tmp_path / "own", tmp_path / "shipped"
    for root in (own, shipped, shipped):
        store.publish(tiny_bundle, root)
    other = replace(tiny_bundle, card=tiny_bundle.card.model_copy(update={"name": "other"}))
    store.publish(other, shipped)
    options = ("--store", f"{own}:{shipped}")
    lines = oddigit("models", *options).stdout.splitlines()
    used = {("own", "mnist", "1"), ("shipped", "other", "1")}
    for root, name, version in (*used, ("shipped", "mnist", "1"), ("shipped", "mnist", "2")):
        (line,) = [line for line in lines if line.rstrip().endswith(f"{tmp_path}/{root}/{name}/{version}")]
        assert ("yes" in line.split()) == ((root, name, version) in used)
    entries = json.loads(oddigit("models", *options, "--json").stdout)
    assert [(entry["folder"], entry["in_use"]) for entry in entries if entry["name"] == "mnist"] == [
        (str(own / "mnist" / "1"), True), (str(shipped / "mnist" / "1"), False), (str(shipped / "mnist" / "2"), False),
    ]  # fmt: skip
    assert "folder" not in oddigit("models", "--store", own).stdout


def test_models_for_machines_are_json(oddigit, tiny_store, tmp_path):
    """The same versions with the digests of their files; a damaged one with the reason; an empty store is an empty array."""
    root = tmp_path / "store"
    shutil.copytree(tiny_store, root)
    shutil.copytree(root / "mnist" / "1", root / "mnist" / "2")
    (root / "mnist" / "2" / CARD).write_text("{}")
    good, bad = json.loads(oddigit("models", "--store", root, "--json").stdout)
    assert (good["name"], good["version"], good["alpha"], good["scorer"]) == ("mnist", 1, 0.01, "mse")
    assert good["files"].keys() >= {"autoencoder.pth", "scorer.npz"}
    assert (bad["name"], bad["version"]) == ("mnist", 2)
    assert "altered" in bad["error"]
    assert oddigit("models", "--store", tmp_path / "none", "--json").stdout.strip() == "[]"
