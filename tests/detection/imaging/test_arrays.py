import numpy as np
import pytest
from strokes import npy, stroke_images

from app.detection.imaging.arrays import read_array
from app.detection.imaging.errors import TooManyImages, UndecodableImage

IMAGES = stroke_images(4, seed=0)


def read(array, most=100):
    return read_array(npy(array), max_images=most, size=28)


@pytest.mark.parametrize("shape", [(4, 28, 28), (4, 784), (4, 1, 28, 28), (4, 28, 28, 1)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_flat_images_and_a_channel_of_one_are_accepted(shape, order):
    """The same images, in any of the shapes that libraries use."""
    np.testing.assert_array_equal(read(np.asarray(IMAGES.reshape(shape), order=order)), IMAGES)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (IMAGES / 255, ["float64 [4, 28, 28]", "np.rint(array * 255)"]),
        ((IMAGES / 255).astype(np.float32)[:, None], ["float32 [4, 1, 28, 28]", "np.rint(array * 255)"]),
        (IMAGES.astype(np.int64), ["int64 [4, 28, 28]", "array.astype(np.uint8)"]),
        (IMAGES > 9, ["bool [4, 28, 28]", "* 255"]),
        (IMAGES[:, :14], ["uint8 [4, 14, 28]", "send uint8 [N, 28, 28]"]),
        (np.repeat(IMAGES[..., None], 3, -1), ["uint8 [4, 28, 28, 3]", "one channel"]),
        (np.full((1, 28, 28), "x"), ["another type than numbers [1, 28, 28]"]),
        (np.zeros((0, 784), np.uint8), ["uint8 [0, 784]"]),
    ],
)
def test_another_array_is_named_and_its_conversion_told(array, words):
    """Type, shape, what is accepted, and the line of NumPy that converts."""
    with pytest.raises(UndecodableImage) as error:
        read(array)
    assert all(word in str(error.value) for word in words)


def test_flat_images_count_too():
    """The limit holds for every shape."""
    with pytest.raises(TooManyImages):
        read(IMAGES.reshape(4, 784), most=3)


DAMAGED = [b"", b"x", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': '<f4'  }", npy(IMAGES)[:-9]]
DAMAGED += [
    npy(IMAGES).replace(b"(4, 28, 28), ", shape)[:-1] for shape in (b"(4 28, 28),  ", b"(4, 28\x0c 28),", b"(4,,, 28 28) ")
]


@pytest.mark.parametrize("data", DAMAGED)
def test_damaged_arrays_are_refused(data):
    """With the reader's own sentence: an array of the right shape is not to be converted."""
    with pytest.raises(UndecodableImage) as refused:
        read_array(data, max_images=9, size=28)
    assert "send uint8 [N, 28, 28]" not in str(refused.value)
