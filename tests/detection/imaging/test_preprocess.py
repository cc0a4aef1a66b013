"""Any picture -> a digit as MNIST's makers would have made it, and what was seen on the way."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageFilter

from app.detection.imaging.centring import centre_image, centre_images
from app.detection.imaging.decode import decode_image
from app.detection.imaging.morphology import dilate, erode, label_components, sliding_extreme
from app.detection.imaging.preprocess import PreprocessedImage, preprocess_digit
from app.detection.imaging.upload_features import FEATURE_NAMES

DATA = Path(os.environ.get("ODDIGIT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))


def written(size: int = 100, paper=255, ink=0, width: int = 8, at=(0, 0)) -> np.ndarray:
    """A 4 drawn on paper, grey or RGB by the colours given: uint8 [size, size] or [size, size, 3]."""
    image = Image.new("L" if isinstance(paper, int) else "RGB", (size, size), paper)
    pen = ImageDraw.Draw(image)
    for start, end in (((30, 20), (28, 52)), ((28, 52), (68, 50)), ((60, 18), (56, 84))):
        x, y = at
        pen.line([(start[0] + x, start[1] + y), (end[0] + x, end[1] + y)], fill=ink, width=width, joint="curve")
    return np.asarray(image.filter(ImageFilter.GaussianBlur(0.6)))


def drawn(strokes) -> np.ndarray:
    """Lines drawn on a white page, uint8 [100, 100]."""
    image = Image.new("L", (100, 100), 255)
    for points in strokes:
        ImageDraw.Draw(image).line(points, fill=20, width=9, joint="curve")
    return np.asarray(image)


GLYPHS = {
    "four": written(),
    "seven": drawn([[(25, 22), (72, 22), (45, 82)]]),
    "two": drawn([[(28, 30), (50, 18), (68, 34), (30, 80), (72, 80)]]),
}


def difference(one: PreprocessedImage, other: PreprocessedImage) -> float:
    """Mean absolute difference of two prepared images, in [0, 2]; centring is by whole pixels, so one off is forgiven."""
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    first, second = one.image / 127.5, other.image / 127.5
    return min(float(np.abs(first - np.roll(second, shift, (0, 1))).mean()) for shift in shifts)


def sound(prepared: PreprocessedImage) -> None:
    assert prepared.image.shape == (28, 28)
    assert prepared.image.dtype == np.uint8
    assert prepared.features is not None
    assert prepared.features.shape == (len(FEATURE_NAMES),)
    assert prepared.features.dtype == np.float32
    assert np.isfinite(prepared.features).all()


# -------------------------------------------------------------------------------------------------- what MNIST's makers did


def test_the_digit_is_bright_fills_twenty_pixels_and_is_centred():
    """Bright on dark, longest side 20, centre of mass in the middle."""
    ink = preprocess_digit(written()).image / 255
    rows, columns = np.flatnonzero((ink > 0.1).any(axis=1)), np.flatnonzero((ink > 0.1).any(axis=0))
    assert 19 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 21
    assert ink[:4].max() == 0
    y, x = np.average(np.arange(28), weights=ink.sum(1)), np.average(np.arange(28), weights=ink.sum(0))
    assert abs(y - 14) <= 0.6
    assert abs(x - 14) <= 0.6


def test_what_was_done_is_told():
    """The steps are named in their order."""
    assert preprocess_digit(written(400)).preprocess[:3] == ("shrunk", "inverted", "cropped")
    assert preprocess_digit(written(), steps=("turned",)).preprocess[0] == "turned"


def test_polarity_does_not_matter():
    """Chalk on a board is the same digit as ink on paper."""
    dark = preprocess_digit(written())
    light = preprocess_digit(255 - written())
    assert difference(dark, light) < 0.02
    assert "inverted" in dark.preprocess
    assert "inverted" not in light.preprocess


@pytest.mark.parametrize("at", [(-20, -10), (15, 5), (0, 12)])
def test_position_does_not_matter(at):
    """The digit may stand anywhere on the page."""
    assert difference(preprocess_digit(written()), preprocess_digit(written(at=at))) < 0.03


@pytest.mark.parametrize("factor", [0.5, 2, 4, 9])
def test_size_does_not_matter(factor):
    """The same drawing from a small or a large camera is the same digit."""
    large = Image.fromarray(written()).resize((round(100 * factor),) * 2, Image.Resampling.BICUBIC)
    assert difference(preprocess_digit(written()), preprocess_digit(np.asarray(large))) < 0.06


@pytest.mark.parametrize(
    ("paper", "ink"),
    [
        ((255, 255, 255), (0, 0, 200)),
        ((255, 255, 255), (255, 230, 0)),
        ((250, 240, 200), (200, 30, 30)),
        ((30, 90, 40), (240, 240, 230)),
        ((128, 128, 128), (90, 90, 90)),
        ((200, 60, 60), (60, 125, 60)),
    ],
)
def test_colours_do_not_matter(paper, ink):
    """Blue, yellow or red pens and boards: what differs from the page is ink."""
    assert difference(preprocess_digit(written()), preprocess_digit(written(paper=paper, ink=ink))) < 0.03


def test_uneven_light_does_not_matter():
    """A shadow across the page is not ink."""
    light = np.linspace(1.0, 0.45, 100)[None] * np.linspace(1.0, 0.8, 100)[:, None]
    assert difference(preprocess_digit(written()), preprocess_digit((written() * light).astype(np.uint8))) < 0.05


def test_grain_and_jpeg_hardly_matter():
    """Noise and compression leave the digit what it is."""
    grain = np.random.default_rng(0).normal(0, 12, (100, 100))
    file = io.BytesIO()
    Image.fromarray(np.clip(written(paper=200, ink=60) + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=60)
    assert difference(preprocess_digit(written()), decode_image(file.getvalue())) < 0.08


def test_borders_of_a_cell_are_taken_away():
    """Grid lines at the edges leave the digit as it is."""
    cell = written().copy()
    cell[:4] = cell[:, -5:] = cell[92:94] = 30
    prepared = preprocess_digit(cell)
    assert "lines_removed" in prepared.preprocess
    assert difference(preprocess_digit(written()), prepared) < 0.05


@pytest.mark.parametrize("margin", [0, 1, 2])
@pytest.mark.parametrize("digit", ["four", "seven", "two"])
def test_tight_crops_are_read_whole(digit, margin):
    """A segmenter's crop, with a stroke across the whole crop, is neither inverted nor taken for lines of the page."""
    page = GLYPHS[digit]
    rows, columns = np.flatnonzero((page < 128).any(axis=1)), np.flatnonzero((page < 128).any(axis=0))
    crop = page[rows[0] - margin : rows[-1] + 1 + margin, columns[0] - margin : columns[-1] + 1 + margin]
    for pixels in (crop, 255 - crop):
        prepared = preprocess_digit(np.ascontiguousarray(pixels))
        assert "lines_removed" not in prepared.preprocess
        assert difference(preprocess_digit(page), prepared) < 0.05


@pytest.mark.parametrize("both", [False, True], ids=["lined", "squared"])
def test_strokes_that_cross_the_lines_of_the_page_are_kept(both):
    """Ruled and squared paper is taken away; the digit stays whole."""
    page = written(150, at=(25, 25)).copy()
    for start in range(13, 150, 30):
        page[start : start + 2] = np.minimum(page[start : start + 2], 110)
        if both:
            page[:, start : start + 2] = np.minimum(page[:, start : start + 2], 110)
    prepared = preprocess_digit(page)
    assert "lines_removed" in prepared.preprocess
    assert difference(preprocess_digit(written(150, at=(25, 25))), prepared) < 0.07


def test_a_frame_with_paper_around_it_is_taken_away():
    """The frame of a form field need not reach the edge of the image."""
    page = written(140, at=(20, 20)).copy()
    page[6:9, 6:134] = page[131:134, 6:134] = page[6:134, 6:9] = page[6:134, 131:134] = 40
    assert difference(preprocess_digit(written()), preprocess_digit(page)) < 0.05


def test_dots_of_a_printer_are_smoothed():
    """A halftone of a digit is a digit."""
    y, x = np.indices((150, 150))
    screen = 127 + 60 * (np.sin(2 * np.pi * (x + y) / 4.3) + np.sin(2 * np.pi * (x - y) / 4.3))
    page = written(150, at=(25, 25), paper=225, ink=45)
    assert difference(preprocess_digit(page), preprocess_digit(((page > screen) * 255).astype(np.uint8))) < 0.12


def test_thin_pens_are_thickened():
    """A hairline becomes a stroke of the usual width, not a grey one."""
    thin = preprocess_digit(written(300, width=2))
    assert "thickened" in thin.preprocess
    assert (thin.image > 191).sum() > 20


# -------------------------------------------------------------------------------------------------- what is suspicious


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (5000, 10), (28, 28), (300, 200)])
@pytest.mark.parametrize("level", [0, 127, 255])
def test_pages_without_ink_are_blank(shape, level):
    """A constant picture comes out empty, says so, and its features are finite."""
    prepared = preprocess_digit(np.full(shape, level, np.uint8))
    sound(prepared)
    assert (prepared.image == 0).all()
    assert prepared.warnings == ("blank",)


def test_two_digits_are_noticed():
    """Two glyphs side by side are warned of."""
    page = np.concatenate([written()[:, 15:80], written()[:, 15:80]], axis=1)
    assert preprocess_digit(page).warnings[0] == "several_glyphs: 2"


def test_a_digit_cut_off_is_noticed():
    """A digit that runs off the picture is warned of."""
    assert "touches_border" in preprocess_digit(written()[30:, :64]).warnings


def test_few_pixels_are_noticed():
    """A digit of a few pixels is warned of."""
    small = np.asarray(Image.fromarray(written()).resize((12, 12), Image.Resampling.BOX))
    assert "upscaled" in preprocess_digit(small).warnings


def test_faint_ink_is_noticed():
    """Ink that hardly differs from the page is found, and warned of."""
    faint = preprocess_digit(written(paper=200, ink=188))
    assert "low_contrast" in faint.warnings
    assert difference(preprocess_digit(written()), faint) < 0.05


def test_features_tell_a_photograph_from_a_digit():
    """Shades, texture and colour move the features further than pen, paper and light do."""
    rng = np.random.default_rng(0)
    digits = [
        preprocess_digit(written(paper=int(paper), ink=int(ink), width=int(width)))
        for paper, ink, width in zip(rng.integers(190, 256, 40), rng.integers(0, 60, 40), rng.integers(5, 12, 40), strict=True)
    ]
    scene = np.asarray(Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize((96, 96)))
    known = np.stack([prepared.features for prepared in digits])
    distance = np.abs((preprocess_digit(scene).features - known.mean(0)) / (known.std(0) + 0.1))
    assert distance.max() > 2 * np.abs((known - known.mean(0)) / (known.std(0) + 0.1)).max()


# -------------------------------------------------------------------------------------------------- whatever comes


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    colour=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([2, 3, 20, 256]),
    size=st.sampled_from([20, 28, 32]),
)
def test_any_picture_is_prepared(height, width, colour, seed, levels, size):
    """Never an error, never NaN, always in range, whatever the pixels."""
    shape = (height, width, 3) if colour else (height, width)
    noise = np.random.default_rng(seed).integers(0, levels, shape) * (255 // (levels - 1))
    prepared = preprocess_digit(noise.astype(np.uint8), size=size)
    assert prepared.image.shape == (size, size)
    assert np.isfinite(prepared.features).all()


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (3, 3, 3), (1, 999), (5000, 10, 3), (700, 900)])
def test_odd_shapes_are_prepared(shape):
    """A line, a dot, a strip: each comes out sound."""
    pixels = np.zeros(shape, np.uint8)
    pixels[shape[0] // 2, shape[1] // 2] = 255
    sound(preprocess_digit(pixels))
    sound(preprocess_digit(255 - pixels))


def test_prepared_images_are_those_of_their_pixels():
    """Equal pixels give equal bits, and the input is left alone."""
    page = written()
    before = page.copy()
    assert np.array_equal(preprocess_digit(page).image, preprocess_digit(page.copy()).image)
    assert np.array_equal(page, before)


@pytest.mark.skipif(not (DATA / "MNIST" / "raw").is_dir(), reason=f"no MNIST under {DATA}")
def test_mnist_itself_stays_almost_as_it_is():
    """What was prepared so already hardly changes: a mean of 0.01 on [-1, 1], and no digit is lost or turned over."""
    file = DATA / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    images = np.frombuffer(file.read_bytes(), np.uint8, count=500 * 784, offset=16).reshape(-1, 28, 28)
    prepared = [preprocess_digit(image) for image in images]
    change = np.abs(np.stack([one.image for one in prepared]) / 127.5 - images / 127.5).mean(axis=(1, 2))
    assert change.mean() < 0.01
    assert not any("inverted" in one.preprocess or "blank" in one.warnings for one in prepared)


@pytest.mark.skipif(not (DATA / "photos").is_dir(), reason=f"no photos under {DATA}")
@pytest.mark.parametrize("name", ["handwritten_digits", "tablet_digits"])
def test_photographs_of_digits_are_read(name):
    """Of real uploads nearly every digit is found, whole and alone."""
    prepared = [decode_image(file.read_bytes()) for file in sorted((DATA / "photos" / name).iterdir())]
    assert (
        np.mean([one.warnings[:1] != () and one.warnings[0].startswith(("several_glyphs", "blank")) for one in prepared]) < 0.05
    )


# -------------------------------------------------------------------------------------------------- centring


def test_images_off_the_middle_are_shifted_by_whole_pixels():
    """Ink that lies two pixels off is moved back; an image in its place is left alone to the bit."""
    image = preprocess_digit(written()).image
    images, moved = centre_images(np.stack([image, np.roll(image, (2, -2), (0, 1)), np.zeros_like(image)]))
    assert moved.tolist() == [False, True, False]
    assert np.array_equal(images[0], image)
    assert np.array_equal(images[1], image)


def test_images_are_centred_whatever_their_order_in_memory():
    image = preprocess_digit(written()).image
    off = np.stack([np.roll(image, (2, -2), (0, 1))] * 3)
    for order in ((0, 1, 2), (0, 2, 1), (2, 1, 0), (1, 2, 0)):
        kept = off.transpose(order).copy().transpose(np.argsort(order))
        assert np.array_equal(kept, off)
        assert np.array_equal(centre_images(kept)[0], np.stack([image] * 3))
        assert np.array_equal(centre_image(kept[0])[0], image)


def test_centring_loses_no_ink():
    """Where the shift would move ink out of the image, it is smaller."""
    image = np.zeros((28, 28), np.uint8)
    image[5:9, 2:4], image[27, 26] = 255, 1
    for centred in (centre_image(image)[0], *centre_images(np.stack([image, image]))[0]):
        assert centred.sum(dtype=int) == image.sum(dtype=int)
        assert np.array_equal(np.sort(centred, axis=None), np.sort(image, axis=None))


@given(arrays(np.uint8, (28, 28), elements=st.sampled_from([0, 0, 0, 1, 90, 255])), st.integers(0, 27), st.integers(0, 27))
def test_one_image_is_centred_as_many_are(noise, rows, columns):
    """Blank ones, and ink at any place."""
    image = noise.copy()
    image[rows:], image[:, columns:] = 0, 0
    images, moved = centre_images(np.stack([image, image.T]))  # of one image, centre_images would ask centre_image
    for expected, was_moved, each in zip(images, moved, (image, image.T), strict=True):
        centred, shifted = centre_image(each)
        assert np.array_equal(centred, expected)
        assert shifted == was_moved


@pytest.mark.skipif(not (DATA / "MNIST" / "raw").is_dir(), reason=f"no MNIST under {DATA}")
def test_no_image_of_mnist_is_moved():
    """MNIST was centred when it was made."""
    for name in ("train", "t10k"):
        file = DATA / "MNIST" / "raw" / f"{name}-images-idx3-ubyte"
        images = np.frombuffer(file.read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
        assert not centre_images(images)[1].any()


# -------------------------------------------------------------------------------------------------- morphology


def test_components_are_those_of_a_flood_fill():
    """Labels, masses and boxes agree with filling each component by hand."""
    rng = np.random.default_rng(0)
    for _ in range(40):
        height, width = rng.integers(1, 20, 2)
        mask, weights = rng.random((height, width)) < rng.uniform(0.1, 0.8), rng.random((height, width)).astype(np.float32)
        components = label_components(mask, weights)
        expected = flood(mask)
        assert np.array_equal(components.labels, expected)
        for label in range(expected.max() + 1):
            rows, columns = np.nonzero(expected == label)
            box = (components.top[label], components.left[label], components.bottom[label], components.right[label])
            assert box == (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
            assert components.mass[label] == pytest.approx(weights[expected == label].sum(), rel=1e-5)


def flood(mask: np.ndarray) -> np.ndarray:
    labels, count = np.full(mask.shape, -1), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if labels[start] >= 0:
            continue
        waiting = [start]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x] and labels[y, x] < 0:
                labels[y, x] = count
                waiting += [(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        count += 1
    return labels


def test_erosion_is_the_dilation_of_the_negative():
    """Dilation of the ink is erosion of the paper."""
    values = np.random.default_rng(0).random((17, 23)).astype(np.float32)
    for radius in range(5):
        assert np.array_equal(dilate(values, radius), -erode(-values, radius))


def test_a_sliding_extreme_is_that_of_its_window():
    """Each row becomes the largest of those within reach."""
    values = np.random.default_rng(0).random((30, 4)).astype(np.float32)
    for reach in (0, 1, 4, 40):
        expected = [values[max(0, row - reach) : row + reach + 1].max(0) for row in range(30)]
        assert np.array_equal(sliding_extreme(values, np.maximum, reach), expected)
