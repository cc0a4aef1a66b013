"""Versions that someone with write access made to harm the server: each is refused with a sentence, whatever it holds."""

import hashlib
import io
import os
import resource
import shutil
import warnings
import zipfile
from collections import Counter

import numpy as np
import pytest
from onnx import TensorProto, helper, load_from_string
from tampering import memory_below, refused, sign, understated_zip

from app.detection import store
from app.detection.bundle import DETECTOR_ONNX, ONNX_FILES, SCORER, WEIGHTS, BundleError, read_npz
from app.detection.detector import Detector
from app.detection.store import CARD, REPORT, StoreError


@pytest.fixture
def version(shipped_store, tmp_path):
    """A copy of the shipped version, to be damaged."""
    return shutil.copytree(store.find(shipped_store, "mnist"), tmp_path / "mnist" / store.find(shipped_store, "mnist").name)


@pytest.fixture
def arrays(version):
    """The arrays of the version's scorer."""
    with np.load(version / SCORER) as archive:
        return dict(archive)


# ------------------------------------------------------------------------------------------------------- files that are none


@pytest.mark.parametrize("name", [WEIGHTS, SCORER, DETECTOR_ONNX, CARD])
def test_a_fifo_is_refused_and_not_waited_for(version, name):
    """Opened as a file, a FIFO would wait for a writer forever."""
    (version / name).unlink()
    os.mkfifo(version / name)
    assert "not a regular file" in refused(version)


@pytest.mark.parametrize("target", ["/dev/zero", "/etc/hostname", "../../secret"])
@pytest.mark.parametrize("name", [SCORER, CARD])
def test_a_link_out_of_the_version_is_refused(version, name, target):
    """Devices and files outside are not read, whatever the card says of them."""
    (version.parents[1] / "secret").write_text("secret")
    (version / name).unlink()
    (version / name).symlink_to(target)
    assert "outside" in refused(version)


def test_a_link_inside_the_version_is_followed(version):
    """Kubernetes mounts files as links to a folder beside them."""
    (version / "..data").mkdir()
    (version / SCORER).rename(version / "..data" / SCORER)
    (version / SCORER).symlink_to(f"..data/{SCORER}")
    assert store.load(version).card.name == "mnist"


def test_a_folder_in_the_place_of_a_file_is_refused(version):
    """A folder is no regular file."""
    (version / SCORER).unlink()
    (version / SCORER).mkdir()
    assert SCORER in refused(version)


def test_a_version_larger_than_the_limit_is_refused_unread(version):
    """The sizes of all files together are limited; the sentence names the setting."""
    size = sum(path.stat().st_size for path in version.rglob("*") if path.is_file())
    assert store.load(version, max_bytes=size).card.name == "mnist"
    with pytest.raises(StoreError, match="ODDIGIT_MAX_VERSION_BYTES"):
        store.load(version, max_bytes=size // 2)
    (version / WEIGHTS).write_bytes(b"")
    os.truncate(version / WEIGHTS, 2**40)  # a sparse file: no byte on disk, a terabyte to read
    assert "ODDIGIT_MAX_VERSION_BYTES" in refused(version)


def test_the_size_of_each_file_is_counted_once(version, monkeypatch):
    """A report of 6,000 files took 0.8 s to add up the sizes of those before each."""
    for number in range(100):
        (version / REPORT / f"{number}.txt").write_text("x")
    names = {str(path.relative_to(version)) for path in version.rglob("*") if path.is_file()} - {CARD}
    sign(version, files=dict.fromkeys(names, hashlib.sha256(b"x").hexdigest()))
    sign(version)
    counts = Counter()

    class Content(bytes):
        def __len__(self):
            counts["sizes"] += 1
            return super().__len__()

    read = store._read_verified
    monkeypatch.setattr(store, "_read_verified", lambda *arguments: Content(read(*arguments)))
    store.load(version)
    assert counts["sizes"] < 5 * len(names)


def test_a_huge_card_is_refused_unread(version):
    """A card has its own limit, because nothing vouches for it."""
    os.truncate(version / CARD, 2**40)
    assert CARD in refused(version)


# ------------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308, -1e308, 1e30])
def test_an_array_of_impossible_numbers_is_refused(version, arrays, value):
    """One such number in any array of the scorer is enough, even where the card agrees."""
    floats = [name for name, array in arrays.items() if array.dtype.kind == "f"]
    for name in floats if value == np.inf else floats[:2]:
        damaged = arrays[name].astype(np.float64)
        damaged.flat[-1] = value
        np.savez(version / SCORER, **{**arrays, name: damaged})
        sign(version)
        assert name in refused(version)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_what_the_scorer_divides_by_must_be_positive(version, arrays, value):
    """Standard deviations, variances and units of zero or less would give scores that are not finite."""
    for name in ("scale", "widths", "pixel_std", "variance", "band_std", "spread"):
        np.savez(version / SCORER, **{**arrays, name: np.full_like(arrays[name], value)})
        sign(version)
        assert f"{name} holds numbers that are not positive" in refused(version)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("upload_groups", lambda array: array[:5]),
        ("upload_calibration", lambda array: array[None]),
        ("upload_calibration", lambda array: array[0]),
        ("evidence_units", lambda array: array[:1]),
        ("evidence_max_deviation", lambda array: -array),
        ("evidence_digit0_head_w0", lambda array: array[:-1]),
    ],
)
def test_an_upload_scorer_of_other_shapes_is_refused(version, arrays, name, change):
    """Its scores of images are right, but each upload would be an error."""
    np.savez(version / SCORER, **{**arrays, name: change(arrays[name])})
    sign(version)
    with pytest.raises(BundleError):
        Detector(store.load(version), "cpu").self_check()


def bomb(count, declared):
    """An .npz whose one entry holds `count` bytes of zeros and declares `declared` numbers of 8 bytes."""
    header, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (declared,)})
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("calibration.npy", "w", force_zip64=True) as entry,
    ):
        entry.write(header.getvalue())
        for _ in range(count // 2**20):
            entry.write(bytes(2**20))
    return file.getvalue()


@pytest.mark.parametrize(("megabytes", "declared"), [(256, 2**25), (1, 2**40), (1, 2**17 + 1), (1, 2**17 - 1)])
def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(megabytes, declared):
    """Neither 1 MiB that unpack to a GiB nor a header that declares terabytes allocates memory."""
    content = bomb(megabytes * 2**20, declared)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match=r"unpacks to|another size"):
        read_npz(content, SCORER)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def npz_of(names, content, compression=zipfile.ZIP_DEFLATED):
    """An .npz whose entries have these names, each with the same content."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of repeated names
        for name in names:
            archive.writestr(name, content)
    return file.getvalue()


def zeros(count):
    """An .npy of `count` bytes of zeros."""
    file = io.BytesIO()
    np.save(file, np.zeros(count, np.uint8))
    return file.getvalue()


@pytest.mark.parametrize("names", [["x.npy"] * 2, ["x.npy", "x"]])
def test_arrays_of_the_same_name_are_refused(names):
    """The sizes of a small and a large entry were added up, and the large one was read for each."""
    with pytest.raises(BundleError, match="two arrays have the same name"):
        read_npz(npz_of(names, zeros(100)), SCORER)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_an_entry_unpacks_to_no_more_than_the_size_that_it_states(compression):
    packed = understated_zip("x.npy", compression)
    with memory_below(2**20), pytest.raises(BundleError, match="does not hold plain arrays"):
        read_npz(packed, SCORER)


def zip_of(entry, content, flags=0):
    """A ZIP archive of one file, with these general purpose bits."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(entry, content)
    packed = bytearray(file.getvalue())
    packed[6], packed[packed.index(b"PK\x01\x02") + 8] = flags, flags
    return bytes(packed)


def npy_with_shape(shape):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (%s,), }" % shape
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [zip_of("a.npy", b"x", flags=1), *(zip_of("a.npy", npy_with_shape(b"-" * count + b"1")) for count in (3_000, 9_000))],
    ids=["encrypted", "3,000 signs", "9,000 signs"],
)
def test_an_archive_that_makes_libraries_fail_is_damaged(content):
    """Their exceptions are of any type."""
    with pytest.raises(BundleError, match="does not hold plain arrays"):
        read_npz(content, SCORER)


def test_compressed_weights_are_refused(version):
    """torch unpacks each entry to the size that the archive declares, whatever that is."""
    packed = io.BytesIO()
    with zipfile.ZipFile(version / WEIGHTS) as whole, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in whole.namelist():
            archive.writestr(name, whole.read(name))
    (version / WEIGHTS).write_bytes(packed.getvalue().ljust((version / WEIGHTS).stat().st_size, b"\0"))
    sign(version)
    assert WEIGHTS in refused(version)


@pytest.mark.parametrize(
    ("image_size", "hidden", "latent_dim"),
    [(28, (700_000, 64, 12), 2), (28, (128,) * 2000, 2), (28, (128,), 60_000), (700_000, (9,), 2)],
)
@pytest.mark.parametrize("runtime", ["onnx", "torch"])
def test_an_architecture_without_bound_is_refused_before_it_is_allocated(version, image_size, hidden, latent_dim, runtime):
    """The weights that the card states must fit into the weights file; 700,000 units took 5 GB."""
    architecture = {"image_size": image_size, "hidden": hidden, "latent_dim": latent_dim, "parameters": 222_384}
    sign(version, architecture=architecture)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert CARD in refused(version, runtime)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


# --------------------------------------------------------------------------------------------------------------------- ONNX


@pytest.mark.parametrize("location", ["secret.bin", "../secret.bin", "/etc/hostname"])
@pytest.mark.parametrize("name", ONNX_FILES)
def test_an_onnx_model_cannot_read_other_files(version, name, location, monkeypatch):
    """Weights outside of the model's own bytes are refused, from the working folder too."""
    model = load_from_string((version / name).read_bytes())
    weights = model.graph.initializer[0]
    (version / "secret.bin").write_bytes(weights.raw_data)
    monkeypatch.chdir(version)
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", location
    (version / name).write_bytes(model.SerializeToString())
    sign(version)
    assert name in refused(version)


@pytest.mark.parametrize("name", ONNX_FILES)
def test_an_onnx_model_cannot_declare_more_numbers_than_it_holds(version, name):
    """Four gigabytes in the header and four bytes behind it allocate nothing."""
    model = load_from_string((version / name).read_bytes())
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[10**9], raw_data=b"1234"))
    model.graph.node.append(helper.make_node("Identity", ["w"], ["unused"]))
    (version / name).write_bytes(model.SerializeToString())
    sign(version)
    assert name in refused(version)
