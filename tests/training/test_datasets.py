"""Data sets are read whole, split by a seed, and refused with a sentence when something is wrong with them."""

import zipfile
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strokes import stroke_images

from app.detection.imaging.centring import centre_images
from app.training import recalibrate
from app.training.datasets import DataError, DataSet, LabelledImages, check_files, load_dataset
from app.training.publishing import describe_data
from app.training.splits import split, split_again
from app.training.torchvision_datasets import NAMED_SETS

IMAGES = stroke_images(12, seed=3)


def write_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_array_file(tmp_path):
    """An .npy gives its images, shifted as the server shifts them, and no labels; without preparation bit for bit."""
    np.save(tmp_path / "My Digits.npy", IMAGES)
    dataset = load_dataset(str(tmp_path / "My Digits.npy"), data_dir=tmp_path)
    centred, moved = centre_images(IMAGES)
    assert np.array_equal(dataset.train.images, centred) and moved.any()
    as_it_is = load_dataset(str(tmp_path / "My Digits.npy"), data_dir=tmp_path, preprocess="none")
    assert np.array_equal(as_it_is.train.images, IMAGES)
    assert (dataset.name, dataset.train.labels, dataset.test) == ("my-digits", None, None)


def test_archive_with_word_labels(tmp_path):
    """Labels that are words are counted in alphabetical order."""
    np.savez(tmp_path / "a.npz", images=IMAGES[:3], labels=np.array(["two", "one", "two"]))
    assert load_dataset(str(tmp_path / "a.npz"), data_dir=tmp_path).train.labels.tolist() == [1, 0, 1]


def test_flat_folder(tmp_path):
    """A folder of centred 28x28 images gives their very pixels, in the order of their names, without hidden files."""
    images, _ = centre_images(IMAGES)
    for index, pixels in enumerate(images):
        write_png(tmp_path / "set" / f"{index:02d}.png", pixels)
    (tmp_path / "set" / ".DS_Store").write_bytes(b"?")
    dataset = load_dataset(str(tmp_path / "set"), data_dir=tmp_path)
    assert np.array_equal(dataset.train.images, images)
    assert dataset.train.labels is None


@pytest.mark.parametrize(("names", "labels"), [(("3", "7"), [3, 7]), (("cat", "dog"), [0, 1])])
def test_folder_for_each_class(tmp_path, names, labels):
    """Class folders named by numbers keep them; others are counted."""
    for name, pixels in zip(names, IMAGES[:2], strict=True):
        write_png(tmp_path / name / "a.png", pixels)
    assert load_dataset(str(tmp_path), data_dir=tmp_path).train.labels.tolist() == labels


def test_folder_name_may_hold_a_dot(tmp_path):
    """The name of a detector is made from any folder's."""
    write_png(tmp_path / "Ünïts (v1.2)" / "a.png", IMAGES[0])
    name = load_dataset(str(tmp_path / "Ünïts (v1.2)"), data_dir=tmp_path).name
    assert name and name[0].isalnum() and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")


def npy(array, **options):
    out = BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def npz(**arrays):
    out = BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def zipped(name, compression=zipfile.ZIP_STORED, damage=b""):
    """An archive with a text of this name; `damage` replaces its bytes after the header."""
    out = BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr(name, "no array" * 20)
    content = out.getvalue()
    start = 30 + len(name)
    return content[:start] + damage + content[start + len(damage) :]


PNG = BytesIO()
Image.fromarray(IMAGES[0]).save(PNG, "PNG")
LARGE = BytesIO()
Image.fromarray(np.kron(IMAGES[0], np.ones((4, 4), np.uint8))).save(LARGE, "PNG")

HOSTILE = {
    "nothing there": ("no/such/place", {}, "There is no data set"),
    "empty folder": ("set", {"set/.hidden": b""}, "holds no images"),
    "text file": ("a.txt", {"a.txt": b"hello"}, "neither a folder"),
    "no readable image": (
        "set",
        {"set/a.png": PNG.getvalue()[:60], "set/b.txt": b"hello"},
        "holds no images; skipped: .*a.png",
    ),
    "images beside folders": (
        "set",
        {"set/a.png": PNG.getvalue(), "set/1/b.png": PNG.getvalue()},
        "mixes images and folders",
    ),
    "mixed sizes": ("set", {"set/a.png": PNG.getvalue(), "set/b.png": LARGE.getvalue()}, "mixes sizes"),
    "empty class folders": ("set", {"set/1/.keep": b"", "set/2/.keep": b""}, "holds no images"),
    "pickled array": ("a.npy", {"a.npy": npy(np.array([{}], object), allow_pickle=True)}, "plain arrays"),
    "damaged header": ("a.npy", {"a.npy": npy(IMAGES).replace(b"), }", b"    ")}, "plain arrays"),
    "truncated array": ("a.npy", {"a.npy": npy(IMAGES)[:500]}, "plain arrays"),
    "empty file": ("a.npy", {"a.npy": b""}, "plain arrays"),
    "not an archive": ("a.npz", {"a.npz": b"PK\3\4 and no more"}, "plain arrays"),
    "floats": ("a.npy", {"a.npy": npy(IMAGES / 255)}, "must be uint8"),
    "other size": ("a.npy", {"a.npy": npy(IMAGES[:, :20, :20])}, "must be uint8"),
    "no images": ("a.npy", {"a.npy": npy(IMAGES[:0])}, "holds no images"),
    "archive without images": ("a.npz", {"a.npz": npz(pictures=IMAGES)}, "no array named 'images'"),
    "archive without arrays": ("a.npz", {"a.npz": zipped("images.npy")}, "no array named 'images'"),
    "archive with a damaged entry": ("a.npz", {"a.npz": zipped("images.npy", zipfile.ZIP_LZMA, b"\xff" * 40)}, "plain arrays"),
    "too few labels": ("a.npz", {"a.npz": npz(images=IMAGES, labels=np.arange(3))}, "labels"),
}


@pytest.mark.parametrize(("source", "files", "words"), HOSTILE.values(), ids=HOSTILE)
def test_unusable_sets_are_refused(tmp_path, source, files, words):
    """What cannot be used is refused with one sentence that names it."""
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        load_dataset(str(tmp_path / source), data_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"<html>", bytes(1000)])
def test_damaged_files_of_a_named_set_are_refused(tmp_path, content):
    """An error page in place of MNIST, or zeros."""
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    for name in names:
        path = tmp_path / "MNIST" / "raw" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    with pytest.raises(DataError, match="mnist is not in"):
        load_dataset("mnist", data_dir=tmp_path)


def test_files_that_cannot_be_read_are_skipped_and_named(tmp_path, caplog):
    """A damaged image and a text among images, also in folders of classes; `check_files` refuses them, naming all."""
    for name, content in {
        "1/a.png": PNG.getvalue(),
        "2/b.png": PNG.getvalue()[:60],
        "2/c.png": PNG.getvalue(),
        "n.txt": b"x",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    dataset = load_dataset(str(tmp_path), data_dir=tmp_path)
    assert dataset.train.labels.tolist() == [1, 2]
    assert "1 of 3 files are skipped" in caplog.text and "b.png (truncated PNG)" in caplog.text
    with pytest.raises(DataError, match=r"2 files cannot be read as images: .*b.png \(truncated PNG\), .*n.txt"):
        check_files(str(tmp_path))


def test_known_names_win_and_are_listed(tmp_path):
    """A misspelt name is answered with the names that there are."""
    with pytest.raises(DataError, match=", ".join(NAMED_SETS)):
        load_dataset("mnits", data_dir=tmp_path)


def numbered(count):
    """Images that are all different, labelled by their number."""
    images = np.zeros((count, 28, 28), np.uint8)
    images[:, 0, 0], images[:, 0, 1] = np.arange(count) % 256, np.arange(count) // 256
    return LabelledImages(images, np.arange(count))


@given(count=st.integers(30, 400), seed=st.integers(0, 2**32 - 1), share=st.floats(0.1, 0.8))
def test_split_is_a_partition(count, seed, share):
    """Every image is in exactly one part, with its label, and the same seed gives the same parts."""
    dataset = DataSet("numbers", numbered(count))
    parts = split(dataset, seed, share)
    labels = np.concatenate([parts.fit.labels, parts.calibration.labels, parts.test.labels])
    assert sorted(labels) == list(range(count))
    assert np.array_equal(parts.fit.images, dataset.train.images[parts.fit.labels])
    assert np.array_equal(split(dataset, seed, share).fit.labels, parts.fit.labels)


def test_split_keeps_a_test_part(tmp_path):
    """A set's own test part is left alone."""
    dataset = DataSet("numbers", numbered(60), numbered(10))
    parts = split(dataset, 0)
    assert (len(parts.fit), len(parts.calibration)) == (40, 20)
    assert parts.test is dataset.test


def test_classes_are_in_all_parts_by_their_shares():
    """Large classes to the image; rare ones together, where each alone would be in one part."""
    images = numbered(1000).images
    labels = np.array([0] * 600 + [1] * 210 + list(range(10, 200)))
    parts = split(DataSet("a", LabelledImages(images, labels)), 0)
    counts = [[int((part.labels == label).sum()) for label in (0, 1)] for part in (parts.fit, parts.calibration, parts.test)]
    assert counts == [[343, 120], [171, 60], [86, 30]]
    rare = [int((part.labels > 1).sum()) for part in (parts.fit, parts.calibration, parts.test)]
    assert rare == [108, 55, 27]
    before = split_again(DataSet("a", LabelledImages(images, labels)), {"split_seed": 0, "calibration_share": 1 / 3})
    assert int((before.test.labels > 1).sum()) > 27  # a version of an older release stays split as it was


def test_too_few_images():
    """Three images cannot be split."""
    with pytest.raises(DataError, match="too few"):
        split(DataSet("numbers", numbered(3)), 0)


def test_digest_follows_the_pixels():
    """The digest tells images apart, and nothing else."""
    one, other = numbered(20), numbered(20)
    assert DataSet("a", one).digest == DataSet("b", other).digest
    other.images[3, 3, 3] += 1
    assert DataSet("a", one).digest != DataSet("a", other).digest


def test_a_card_describes_images_and_labels():
    """Labels decide how a set is split: without them, images that were fitted on would calibrate. Older cards have none."""
    images = numbered(20).images
    labelled = DataSet("a", LabelledImages(images, np.arange(20) % 2))
    plain = DataSet("a", LabelledImages(images))
    described = {"sha256": plain.digest, "labels_sha256": plain.labels_digest}
    assert plain.is_described_by(described) and not labelled.is_described_by(described)
    assert labelled.is_described_by({"sha256": plain.digest})
    assert not labelled.is_described_by({"sha256": plain.digest, "labels_sha256": "0"})


def test_the_images_of_a_training_with_other_labels_do_not_calibrate():
    """They are split by their labels, so some of them were fitted on."""
    images = numbered(20).images
    described = describe_data("a", DataSet("a", LabelledImages(images)), split(DataSet("a", numbered(20)), 0), 0, 1 / 3)
    bundle = SimpleNamespace(label="a/1", card=SimpleNamespace(data=described))
    calibration, _ = recalibrate._unseen(bundle, DataSet("b", LabelledImages(images)))
    assert len(calibration) < 20
    with pytest.raises(DataError, match="with other labels"):
        recalibrate._unseen(bundle, DataSet("b", LabelledImages(images, np.arange(20) % 2)))


def test_real_mnist(data_root):
    """The real MNIST: 60,000 and 10,000 images, the first a five, split 40,000 to 20,000."""
    dataset = load_dataset("mnist", data_dir=data_root)
    assert (dataset.train.images.shape, len(dataset.test), dataset.train.labels[0]) == ((60_000, 28, 28), 10_000, 5)
    parts = split(dataset, 0)
    assert (len(parts.fit), len(parts.calibration)) == (40_000, 20_000)
