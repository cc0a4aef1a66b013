"""The command `export`."""

import io
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from live import ROOT

from app.detection import store
from app.detection.bundle import DETECTOR_ONNX, ONNX_FILES, WEIGHTS


@pytest.fixture(scope="module")
def old_store(tiny_bundle, tmp_path_factory):
    """A store with one version that has no ONNX models, and other bytes for the same weights, as an older release wrote it."""
    root = tmp_path_factory.mktemp("old")
    files = {name: content for name, content in tiny_bundle.files.items() if name not in ONNX_FILES}
    torch.save(torch.load(io.BytesIO(files[WEIGHTS]), weights_only=True), root / "autoencoder.pth")  # names its archive
    assert (root / "autoencoder.pth").read_bytes() != files[WEIGHTS]
    files[WEIGHTS] = (root / "autoencoder.pth").read_bytes()
    store.publish(replace(tiny_bundle, files=files), root)
    return root


def test_the_verified_onnx_model_is_copied(oddigit, tiny_store, tmp_path):
    """The file is the version's detector.onnx, byte for byte."""
    done = oddigit("export", "--to", tmp_path / "out.onnx", "--store", tiny_store)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out.onnx").read_bytes() == (tiny_store / "mnist" / "1" / DETECTOR_ONNX).read_bytes()


def test_a_file_is_replaced_only_with_force(oddigit, tiny_store, tmp_path):
    """Without --force an existing file stays as it is."""
    target = tmp_path / "out.onnx"
    target.write_text("mine")
    done = oddigit("export", "--to", target, "--store", tiny_store)
    assert (done.exit_code, target.read_text()) == (2, "mine")
    assert "--force" in done.stderr
    assert oddigit("export", "--to", target, "--store", tiny_store, "--force").exit_code == 0
    assert target.read_bytes() != b"mine"


def test_an_altered_model_is_not_exported(oddigit, tiny_store, tmp_path):
    """The checksum is verified before anything is written."""
    shutil.copytree(tiny_store, tmp_path / "store")
    with (tmp_path / "store" / "mnist" / "1" / DETECTOR_ONNX).open("ab") as file:
        file.write(b"x")
    done = oddigit("export", "--to", tmp_path / "out.onnx", "--store", tmp_path / "store")
    assert done.exit_code == 2 and "altered" in done.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_an_older_version_gets_its_models_by_publishing_it_again(oddigit, old_store, tmp_path):
    """Without detector.onnx the message names the command that adds it, and that command does."""
    done = oddigit("export", "--to", tmp_path / "out.onnx", "--store", old_store)
    assert done.exit_code == 2 and "--publish" in done.stderr
    done = oddigit("export", "--publish", "--store", old_store)
    assert done.exit_code == 0, done.output
    assert oddigit("export", "--to", tmp_path / "out.onnx", "--store", old_store).exit_code == 0


def test_a_version_that_has_its_models_is_not_published_again(oddigit, tiny_store, tmp_path):
    """In one's own store it would hide the shipped version, whose number is higher."""
    done = oddigit("export", "--publish", "--store", f"{tmp_path}:{tiny_store}")
    assert (done.exit_code, "has its ONNX models already" in done.stderr) == (2, True), done.stderr
    assert not list(tmp_path.iterdir())


def test_a_version_is_published_into_the_first_folder_of_the_store(oddigit, old_store, tmp_path):
    """A later folder of the store path is only read."""
    later = tmp_path / "later"
    shutil.copytree(old_store, later)
    before = sorted(later.rglob("*"))
    done = oddigit("export", "--publish", "--version", 1, "--store", f"{tmp_path / 'own'}:{later}")
    assert done.exit_code == 0, done.output
    assert store.folders(tmp_path / "own", "mnist") == [tmp_path / "own" / "mnist" / "1"]
    assert sorted(later.rglob("*")) == before


def test_a_full_disk_leaves_no_truncated_model(oddigit_on_full_disk, tiny_store, tmp_path):
    """The file is renamed when it is complete; one that is replaced stays as it was."""
    (tmp_path / "old.onnx").write_text("mine")
    for name, options in (("new.onnx", ()), ("old.onnx", ("--force",))):
        done = oddigit_on_full_disk("export", "--to", tmp_path / name, *options, "--store", tiny_store)
        assert done.returncode == 2 and f"{name} cannot be written" in done.stderr
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("old.onnx", "mine")]


def test_a_link_is_followed_and_a_device_is_written(oddigit, tiny_store, tmp_path):
    """As programs that open the file for writing do."""
    (tmp_path / "link.onnx").symlink_to(tmp_path / "target.onnx")
    for target in (tmp_path / "link.onnx", "/dev/null"):
        done = oddigit("export", "--to", target, "--force", "--store", tiny_store)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "link.onnx").is_symlink() and (tmp_path / "target.onnx").stat().st_size > 10_000


def test_a_model_that_is_written_to_a_pipe_is_the_file_alone(tiny_store):
    """The sentence goes to standard error, as the summary of `score` does."""
    command = [sys.executable, "-m", "app", "export", "--to", "/dev/stdout", "--force", "--store", tiny_store]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    assert done.stdout == (tiny_store / "mnist" / "1" / DETECTOR_ONNX).read_bytes()
    assert done.stderr.startswith(b"Wrote the detector mnist/1")


@pytest.mark.parametrize("options", [(), ("--publish", "--to", "out.onnx")])
def test_one_of_both_actions_must_be_chosen(oddigit, tiny_store, options):
    """Neither or both of --to and --publish are refused."""
    done = oddigit("export", *options, "--store", tiny_store)
    assert done.exit_code == 2 and "--publish" in done.stderr
