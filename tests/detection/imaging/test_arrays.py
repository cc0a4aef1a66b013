import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strokes import stroke_images

from app.detection.imaging.arrays import read_array
from app.detection.imaging.errors import ImageError, TooManyImages, UndecodableImage

IMAGES = stroke_images(4, seed=0)


def npy(array: np.ndarray, version: tuple[int, int] = (1, 0)) -> bytes:
    """The bytes of a .npy file of a version of the format."""
    out = io.BytesIO()
    np.lib.format.write_array(out, np.asarray(array), version=version)
    return out.getvalue()


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


def test_a_truncated_flat_array_is_called_damaged():
    """Its shape is accepted, so it is not to be converted."""
    with pytest.raises(UndecodableImage, match="declares 4 images, its data are of another length"):
        read_array(npy(IMAGES.reshape(4, 784))[:-9], max_images=9, size=28)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("shape", [(5, 28, 28), (28, 28), (1, 28, 28)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_they_were(version, shape, order):
    """Every version of the format, either memory order, one image or many."""
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    decoded = read_array(npy(np.asarray(images, order=order), version), max_images=9, size=28)
    assert np.array_equal(decoded, images.reshape(-1, 28, 28))


def test_arrays_in_order_are_not_copied():
    """A C-ordered array is a view of the bytes received, in any of its shapes; another one is a copy."""
    for shape in ((100, 28, 28), (100, 784), (100, 28, 28, 1)):
        for order in "CF":
            data = npy(np.zeros(shape, np.uint8, order))
            images = read_array(data, max_images=100, size=28)
            assert np.shares_memory(images, np.frombuffer(data, np.uint8)) == (order == "C")


def with_header(text: str, body: bytes = b"", version: int = 1) -> bytes:
    header = text.encode()
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(header)) + header + body


GOOD = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }"
BAD_ARRAYS = {
    "empty": b"",
    "not npy": b"PK\x03\x04" + b"\x00" * 100,
    "magic alone": b"\x93NUMPY\x01\x00",
    "version 9": b"\x93NUMPY\x09\x00\x10\x00" + b" " * 16,
    "header longer than the file": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "floats": npy(np.zeros((2, 28, 28), np.float32)),
    "nan": npy(np.full((2, 28, 28), np.nan)),
    "signed": npy(np.zeros((2, 28, 28), np.int8)),
    "objects": npy(np.array([[None] * 28] * 28, dtype=object)),
    "records": npy(np.zeros((28, 28), [("a", "u1")])),
    "32x32": npy(np.zeros((2, 32, 32), np.uint8)),
    "five axes": npy(np.zeros((2, 1, 1, 28, 28), np.uint8)),
    "scalar": npy(np.uint8(3)),
    "no images": npy(np.zeros((0, 28, 28), np.uint8)),
    "trailing bytes": npy(np.zeros((2, 28, 28), np.uint8)) + b"\x00",
    "missing bytes": npy(np.zeros((2, 28, 28), np.uint8))[:-1],
    "promises too much": with_header(GOOD % "9999, 28, 28", b"\x00" * 784),
    "negative": with_header(GOOD % "-1, 28, 28", b"\x00" * 784),
    "huge number": with_header(GOOD % ("9" * 60), b"\x00" * 784),
    "nested": with_header("(" * 5000),
    "code": with_header("{'descr': '|u1', 'fortran_order': False, 'shape': __import__('os').getcwd(), }"),
    "no shape": with_header("{'descr': '|u1', 'fortran_order': False}"),
    "not text": with_header("{'descr': '|u1', 'fortran_order': 1, 'shape': (28, 28)}", b"\x00" * 784),
}


@pytest.mark.parametrize("data", BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_bad_arrays_are_refused(data):
    """Wrong type, wrong shape, a header that lies: each is refused in a sentence."""
    with pytest.raises(UndecodableImage) as refused:
        read_array(data, max_images=99_999, size=28)
    assert len(str(refused.value)) > 10


def test_too_many_images_are_refused():
    """The count is checked against the limit, before the length of the data."""
    with pytest.raises(TooManyImages, match="3 images in one array; at most 2"):
        read(np.zeros((3, 28, 28), np.uint8), most=2)
    with pytest.raises(TooManyImages):
        read_array(with_header(GOOD % "999999999999, 28, 28"), max_images=2, size=28)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_mutated_arrays_raise_nothing_else(data):
    """Any bytes of the header changed: an array of images or an ImageError."""
    file = bytearray(npy(np.zeros((1, 28, 28), np.uint8)))
    for _ in range(data.draw(st.integers(1, 5))):
        file[data.draw(st.integers(0, 130))] = data.draw(st.integers(0, 255))
    try:
        images = read_array(bytes(file), max_images=9, size=28)
    except ImageError:
        return
    assert images.shape[1:] == (28, 28)
