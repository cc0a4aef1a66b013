"""Normal images -> uploads of them, prepared as served uploads are."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.detection.imaging.preprocess import preprocess_digit
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.training.synthetic.uploads import draw_upload, synthesise_uploads


@pytest.fixture(scope="module")
def rings():
    """Rings of different sizes and pens, uint8 [40, 28, 28]."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(40):
        image = Image.new("L", (28, 28), 0)
        x, y = rng.integers(4, 9, 2)
        ImageDraw.Draw(image).ellipse([int(x), int(y), int(27 - x), int(27 - y)], outline=255, width=int(rng.integers(2, 4)))
        images.append(np.asarray(image))
    return np.stack(images)


def test_every_image_gives_one_upload_in_order(rings):
    """N images give N prepared images in [-1, 1] and N rows of finite features."""
    uploads = synthesise_uploads(rings, seed=0)
    assert uploads.images.shape == (40, 28, 28)
    assert uploads.images.dtype == np.uint8
    assert uploads.features.shape == (40, len(FEATURE_NAMES))
    assert np.isfinite(uploads.features).all()


def test_equal_seeds_give_equal_uploads(rings):
    """The seed decides everything, and other seeds give others."""
    one, same, other = (synthesise_uploads(rings[:10], seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(one.images, same.images)
    assert np.array_equal(one.features, same.features)
    assert not np.array_equal(one.images, other.images)


def test_an_upload_depends_on_its_own_image_and_place_alone(rings):
    """More images after it do not change what the first become."""
    assert np.array_equal(synthesise_uploads(rings[:5], seed=3).images, synthesise_uploads(rings, seed=3).images[:5])


def test_uploads_are_of_many_kinds(rings):
    """Grey and coloured, large and small, dark pens and light ones all occur."""
    uploads = [draw_upload(rings[number % 40], np.random.default_rng(number)) for number in range(120)]
    assert {upload.ndim for upload in uploads} == {2, 3}
    assert len({upload.shape[:2] for upload in uploads}) > 60
    assert max(max(upload.shape) for upload in uploads) <= 170
    inverted = ["inverted" in preprocess_digit(upload).preprocess for upload in uploads]
    assert 0.7 < np.mean(inverted) < 0.97


def test_the_ink_survives(rings):
    """A ring is still a ring after nearly every upload: ink around, none in the middle."""
    images = synthesise_uploads(np.concatenate([rings] * 5), seed=4).images / 255
    hollow = (images[:, 13:15, 13:15].mean((1, 2)) < 0.3) & (images.sum((1, 2)) > 30)
    assert hollow.mean() > 0.95


def test_images_without_ink_are_uploads_too():
    """An empty normal image gives an upload, not an error."""
    uploads = synthesise_uploads(np.zeros((6, 28, 28), np.uint8), seed=0)
    assert np.isfinite(uploads.features).all()


def test_no_images_give_no_uploads():
    """An empty array gives empty arrays of the right shapes."""
    uploads = synthesise_uploads(np.zeros((0, 28, 28), np.uint8), seed=0)
    assert uploads.images.shape == (0, 28, 28)
    assert uploads.features.shape == (0, len(FEATURE_NAMES))


@pytest.mark.parametrize("size", [20, 32])
def test_other_sizes_are_drawn_at_theirs(size):
    """Models of other image sizes get uploads of their size."""
    images = np.zeros((3, size, size), np.uint8)
    images[:, 5:15, 8:12] = 255
    assert synthesise_uploads(images, seed=0).images.shape == (3, size, size)
