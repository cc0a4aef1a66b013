import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import make_bundle
from hostile import Trap
from live import ROOT
from strokes import npy, stroke_images
from tampering import refused, sign
from tutorial import TUTORIAL

from app.detection import runtimes, store
from app.detection.bundle import DETECTOR_ONNX, ONNX_FILES, SCORER, WEIGHTS
from app.detection.detector import Detector
from app.detection.store import CARD, REPORT, StoreError
from app.network.autoencoder import Autoencoder, ModelConfig

IMAGES = stroke_images(20, seed=6)


@pytest.fixture
def version(tiny_store, tmp_path):
    """A copy of a published version, to be damaged."""
    return shutil.copytree(tiny_store / "mnist" / "1", tmp_path / "mnist" / "1")


def versions(root, name):
    """The numbers of the published versions, ascending."""
    return [int(folder.name) for folder in store.folders(root, name)]


def npz(**arrays):
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------------- round trip


def test_what_is_published_comes_back_the_same(tiny_bundle, tmp_path):
    """A loaded bundle scores, to the bit, as the one that was published."""
    folder = store.publish(tiny_bundle, tmp_path)
    loaded = store.load(folder)
    assert np.array_equal(Detector(loaded, "cpu").detect(IMAGES).scores, Detector(tiny_bundle, "cpu").detect(IMAGES).scores)
    assert np.array_equal(loaded.calibration.scores, tiny_bundle.calibration.scores)
    assert loaded.folder == folder
    assert loaded.card.threshold == tiny_bundle.card.threshold
    assert store.load_card(folder) == loaded.card


def test_a_report_is_published_with_checksums(tiny_bundle, tmp_path):
    """What the report's writer puts into its folder is listed in the card, subfolders too, and altered nowhere."""

    def write(folder):
        (folder / "more").mkdir()
        (folder / "loss.png").write_bytes(b"picture")
        (folder / "more" / "roc.png").write_bytes(b"curve")

    folder = store.publish(tiny_bundle, tmp_path, write)
    files = store.load(folder).card.files
    assert set(files) == {WEIGHTS, SCORER, *ONNX_FILES, f"{REPORT}/loss.png", f"{REPORT}/more/roc.png"}
    (folder / REPORT / "loss.png").write_bytes(b"Picture")
    assert "loss.png" in refused(folder)


def test_a_limit_larger_than_memory_takes_none(tiny_store):
    """Only what a file holds is read."""
    assert store.load(tiny_store / "mnist" / "1", 10**30).card.name == "mnist"


def test_versions_count_up_and_the_highest_is_the_latest(tiny_bundle, tmp_path):
    """Each publication gets the next number, beyond nine as well; a gap is not filled."""
    for _ in range(11):
        store.publish(tiny_bundle, tmp_path)
    assert versions(tmp_path, "mnist") == list(range(1, 12))
    assert store.find(tmp_path, "mnist").name == "11"
    assert store.find(tmp_path, "mnist", 4) == tmp_path / "mnist" / "4"
    with pytest.raises(StoreError, match=r"no version 12 .* there is 1, 2, .*, 11"):
        store.find(tmp_path, "mnist", 12)
    shutil.rmtree(tmp_path / "mnist" / "5")
    assert store.publish(tiny_bundle, tmp_path).name == "12"


def test_what_is_no_version_does_not_count(tiny_bundle, tmp_path):
    """Drafts, files, and folders whose names are no plain numbers are no versions."""
    store.publish(tiny_bundle, tmp_path)
    for name in (".draft-abc", "0", "01", "-2", "2.0", "3 copy", "latest", "1٣", "²"):
        (tmp_path / "mnist" / name).mkdir()
    (tmp_path / "mnist" / "7").write_text("a file")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert versions(tmp_path, "mnist") == [1]
    assert store.find(tmp_path, "mnist").name == "1"
    assert store.names(tmp_path) == ["mnist"]


def test_an_empty_store_is_refused_with_what_to_do(tmp_path):
    """No store, or none of that name: the sentence names the command that makes one."""
    assert versions(tmp_path / "nowhere", "mnist") == []
    assert store.names(tmp_path / "nowhere") == []
    with pytest.raises(StoreError, match="oddigit train"):
        store.find(tmp_path, "mnist")


def test_a_published_version_can_be_read_by_others(tiny_bundle, tmp_path):
    """A server that runs as another user can enter the folder and read every file."""
    folder = store.publish(tiny_bundle, tmp_path)
    assert folder.stat().st_mode & 0o555 == 0o555
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in folder.rglob("*"))


# --------------------------------------------------------------------------------------------------------------- atomicity


def test_a_publication_that_fails_leaves_nothing(tiny_bundle, tmp_path):
    """Where the report cannot be written, the error comes through, and no draft stays behind."""

    def fail(folder):
        (folder / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.publish(tiny_bundle, tmp_path, fail)
    assert list((tmp_path / "mnist").iterdir()) == []


def test_publishers_at_once_get_a_version_each(tiny_bundle, tmp_path):
    """Eight publishers, five versions each: forty versions, all whole, and no draft left."""
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: store.publish(tiny_bundle, tmp_path), range(40)))
    assert sorted(int(folder.name) for folder in folders) == list(range(1, 41))
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(map(str, range(1, 41)))
    assert all(store.load(folder).card.version == int(folder.name) for folder in folders)


def test_a_kill_at_any_moment_leaves_whole_versions(tiny_store, tmp_path):
    """Fifty publishers, each killed at a random moment: every version there is loads, and the next one publishes."""
    subprocess.run([sys.executable, "-c", _KILLER, tiny_store, tmp_path], cwd=ROOT, check=True, timeout=300)
    published = versions(tmp_path, "mnist")
    assert published == list(range(1, len(published) + 1))
    for number in published:
        store.load(tmp_path / "mnist" / str(number))
    assert store.publish(store.load(tiny_store / "mnist" / "1"), tmp_path).name == str(len(published) + 1)


_KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from app.detection import store

def write_report(folder):
    (folder / "picture.png").write_bytes(bytes(200_000))

bundle, root, moments = store.load(Path(sys.argv[1], "mnist", "1")), Path(sys.argv[2]), random.Random(0)
for _ in range(50):
    child = os.fork()
    if child == 0:
        while True:
            store.publish(bundle, root, write_report)
    time.sleep(moments.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


def test_old_drafts_are_swept_and_young_ones_left(tiny_bundle, tmp_path):
    """What a killed publisher left goes with a later publication; what may still be written stays."""
    home = tmp_path / "mnist"
    (home / ".draft-old" / REPORT).mkdir(parents=True)
    (home / ".draft-young").mkdir()
    os.utime(home / ".draft-old", (0, 0))
    store.publish(tiny_bundle, tmp_path)
    assert sorted(path.name for path in home.iterdir()) == [".draft-young", "1"]


# --------------------------------------------------------------------------------------------------- damage and ill intent


@pytest.mark.parametrize("name", [WEIGHTS, SCORER, DETECTOR_ONNX, CARD])
@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_refused(version, name, keep):
    """Cut anywhere, a file is noticed, and the sentence names it."""
    whole = (version / name).read_bytes()
    (version / name).write_bytes(whole[:keep] if keep >= 0 else whole.rstrip()[:-1])
    assert name in refused(version)


@pytest.mark.parametrize("name", [WEIGHTS, SCORER, DETECTOR_ONNX, CARD])
def test_a_missing_file_is_refused(version, name):
    """Without one of its files, a version is refused by the name of that file."""
    (version / name).unlink()
    assert name in refused(version)


@pytest.mark.parametrize("name", [WEIGHTS, SCORER, DETECTOR_ONNX])
@pytest.mark.parametrize("place", [0, 0.5, 0.999])
def test_one_bit_is_enough_to_refuse_a_file(version, name, place):
    """A single flipped bit anywhere in a file is noticed."""
    content = bytearray((version / name).read_bytes())
    content[int(len(content) * place)] ^= 1
    (version / name).write_bytes(content)
    assert "checksum" in refused(version)


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", 0.0), ("alpha", 0.5), ("created", ""), ("version", 2), ("files", {})]
)
def test_an_altered_card_is_refused(version, field, value):
    """Any change to the card after publication is noticed."""
    card = json.loads((version / CARD).read_text())
    (version / CARD).write_text(json.dumps({**card, field: value}))
    assert "altered" in refused(version)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"card"', "{}", "\x00", "[" * 100_000, '{"card_sha256": []}', "NaN", "1" * 5000],
    ids=lambda text: text[:12].replace("\x00", "nul") or "empty",
)  # fmt: skip
def test_a_card_that_is_no_card_is_refused(version, text):
    """Whatever stands in card.json, the answer is a sentence."""
    (version / CARD).write_text(text)
    assert CARD in refused(version)


def test_a_card_of_bytes_is_refused(version):
    """Nor need it be text."""
    (version / CARD).write_bytes(b"\xff\xfe\x00")
    assert CARD in refused(version)


@pytest.mark.parametrize("content", ["code", "tensor", "list", "other-network", "not-finite", "empty", "noise"])
def test_weights_that_are_no_weights_are_refused(version, content):
    """Pickled code, other objects, other networks and numbers that are not finite do not pass, even where the card agrees."""
    nan = {name: torch.full_like(weight, float("nan")) for name, weight in Autoencoder().state_dict().items()}
    path = version / WEIGHTS
    match content:
        case "code":
            path.write_bytes(pickle.dumps({"encoder.0.weight": Trap()}))
        case "empty":
            path.write_bytes(b"")
        case "noise":
            path.write_bytes(np.random.RandomState(0).bytes(100_000))
        case _:
            other = Autoencoder(ModelConfig(hidden=(9,))).state_dict()
            torch.save({"tensor": torch.ones(3), "list": [1], "other-network": other, "not-finite": nan}[content], path)
    sign(version)
    assert WEIGHTS in refused(version, "torch")
    assert WEIGHTS in refused(version)


def test_pickled_code_in_torchs_own_format_is_not_run(version):
    """A weights file of torch's format whose pickle would run code is refused before it runs."""
    torch.save({"encoder.0.weight": Trap()}, version / WEIGHTS)
    sign(version)
    assert WEIGHTS in refused(version, "torch")


def test_weights_and_onnx_models_of_two_versions_are_refused(version, tiny_store):
    """The metadata of each ONNX model names the weights that it was exported from."""
    other = make_bundle(seed=5).files
    (version / WEIGHTS).write_bytes(other[WEIGHTS])
    sign(version)
    assert f"was not exported from its {WEIGHTS}" in refused(version)


@pytest.mark.parametrize("name", ONNX_FILES)
@pytest.mark.parametrize("content", [b"", b"no model", bytes(range(256)) * 20])
def test_onnx_files_that_hold_no_model_are_refused(version, name, content):
    """ONNX Runtime's error becomes one sentence that names the file."""
    (version / name).write_bytes(content)
    sign(version)
    assert name in refused(version)


def test_a_version_of_an_older_release_is_served_by_torch_or_refused_with_the_command(version, monkeypatch):
    """Without ONNX models, torch serves the version; where torch is not installed, the message names what adds them."""
    for name in ONNX_FILES:
        (version / name).unlink()
    card = json.loads((version / CARD).read_text())
    sign(version, files={name: digest for name, digest in card["files"].items() if name not in ONNX_FILES})
    assert Detector(store.load(version), "cpu").runtime == "torch"
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    assert "oddigit export --model mnist --version 1 --publish" in refused(version, "auto")


@pytest.mark.parametrize(
    "content",
    {
        "objects": npz(calibration=np.array([Trap(), 1.0], object)),
        "pickle": pickle.dumps(Trap()),
        "one-array": npy(np.ones(5, np.float32)),
        "empty": b"",
        "noise": bytes(range(256)) * 20,
        "no-calibration": npz(other=np.ones(5, np.float32)),
        "unsorted": npz(calibration=np.array([3, 1, 2] * 100, np.float32)),
        "not-finite": npz(calibration=np.full(300, np.nan, np.float32)),
        "too-few": npz(calibration=np.ones(3, np.float32)),
        "two-axes": npz(calibration=np.ones((300, 2), np.float32)),
        "text": npz(calibration=np.array(["a"] * 300)),
        "complex": npz(calibration=np.ones(300, complex)),
        "other-threshold": npz(calibration=np.arange(300, dtype=np.float32)),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_scorer_that_is_none_is_refused(version, content):
    """Object arrays, pickles and calibrations without sense do not pass, even where the card agrees."""
    (version / SCORER).write_bytes(content[1])
    sign(version)
    refused(version)


def test_an_archive_of_no_arrays_is_refused(version):
    """A zip file whose member is no .npy does not pass for a scorer."""
    with zipfile.ZipFile(version / SCORER, "w") as archive:
        archive.writestr("calibration.npy", b"no array")
        archive.writestr("calibration", b"no array")
    sign(version)
    refused(version)


@pytest.mark.parametrize(
    "changes",
    [
        {"scorer": "unknown"},
        {"alpha": 0.001},
        {"threshold": 0.5},
        {"name": "../mnist"},
        {"version": 2},
        {"colour": "red"},
        {"files": {}},
        {"files": {WEIGHTS: "0" * 64}},
        {"architecture": {"image_size": 0, "hidden": [128], "latent_dim": 2, "parameters": 1}},
        {"architecture": {"image_size": 32, "hidden": [128], "latent_dim": 2, "parameters": 1}},
        {"architecture": {"image_size": 28, "hidden": [128], "latent_dim": 3, "parameters": 1}},
        {"architecture": None},
    ],
    ids=str,
)
def test_a_signed_card_that_contradicts_its_files_is_refused(version, changes):
    """A card that contradicts its files does not pass, even with correct checksums."""
    sign(version, **changes)
    refused(version, runtime="torch" if "scorer" in changes else "onnx")


@pytest.mark.parametrize("name", ["../2/secret", "/etc/hostname", "report/../../secret"])
def test_a_card_cannot_reach_outside_its_version(version, name):
    """Files listed outside the version's folder are refused unread."""
    card = json.loads((version / CARD).read_text())
    sign(version, files={**card["files"], name: "0" * 64})
    assert "outside" in refused(version)


def test_a_version_under_another_number_is_refused(version):
    """A folder renamed to another version is noticed."""
    moved = version.rename(version.parent / "2")
    assert "named 2" in refused(moved)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    """A version that was never published is refused by its path."""
    assert str(tmp_path) in refused(tmp_path / "mnist" / "9")


# ------------------------------------------------------------------------------------------------------------- what ships


def test_the_shipped_weights_are_the_tutorials(shipped_store):
    """They load with torch alone, weights only, under the tutorial's sixteen names and shapes."""
    state = torch.load(store.find(shipped_store, "mnist") / WEIGHTS, weights_only=True)
    assert {name: tuple(weight.shape) for name, weight in state.items()} == TUTORIAL
    assert all(weight.dtype == torch.float32 for weight in state.values())


def test_every_shipped_version_is_whole_and_checks_itself(shipped_store):
    """Each version in the repository passes its checksums and its self-check."""
    names = store.names(shipped_store)
    assert {"mnist", "mnist-vae"} <= set(names)
    for name in names:
        for number in versions(shipped_store, name):
            Detector(store.load(shipped_store / name / str(number)), "cpu").self_check()


def test_the_shipped_network_has_learnt_mnist(shipped_store, data_root):
    """Its mean squared error on the 10,000 test images is at most 0.150."""
    pixels = (data_root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    detector = Detector(store.load(store.find(shipped_store, "mnist")), "cpu")
    assert len(images) == 10_000
    assert float(detector.detect(images).reconstruction_errors.mean()) <= 0.150


@pytest.mark.skipif(os.getuid() == 0 and not shutil.which("setpriv"), reason="root may read every folder")
def test_a_folder_that_may_not_be_read_hides_no_detector(tiny_store, tmp_path):
    """As lost+found, where the store is a disk of its own."""
    shutil.copytree(tiny_store / "mnist", tmp_path / "store" / "mnist")
    (tmp_path / "store" / "lost+found").mkdir(mode=0)
    code = f"from pathlib import Path; from app.detection import store; print(store.names(Path({str(tmp_path / 'store')!r})))"
    command = [sys.executable, "-c", code]
    if os.getuid() == 0:  # without the rights to read every folder
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "['mnist']\n", done.stderr
