"""The command `models`."""

import shutil

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


def test_models_of_an_empty_store_says_what_to_do(oddigit, tmp_path):
    """Exit code 2 and the command that makes a detector."""
    done = oddigit("models", "--store", tmp_path)
    assert done.exit_code == 2
    assert "oddigit train" in done.stderr
