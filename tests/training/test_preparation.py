"""The preparation follows from the images: strokes are prepared as digits, pictures of things are only resized."""

import logging

import numpy as np
import pytest
from PIL import Image
from strokes import stroke_images

from app.training.datasets import load_dataset
from app.training.synthetic.pictures import draw_picture


def garments(count, size=28):
    """Filled shapes in shades of grey on black, as photographs of clothes are: uint8 [count, size, size]."""
    random = np.random.RandomState(5)
    images = np.zeros((count, 28, 28), np.uint8)
    for image in images:
        left, right = random.randint(3, 8), random.randint(20, 26)
        image[3:25, left:right] = random.randint(90, 255) + random.randint(-30, 30, (22, 1))
    return images.repeat(size // 28, axis=1).repeat(size // 28, axis=2)


def write(folder, images):
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index}.png")
    return str(folder)


@pytest.mark.parametrize("size", [28, 280])
def test_files_of_things_are_only_resized(tmp_path, caplog, size):
    """By themselves, with a warning; large files have the pixels of the small ones that they were enlarged from."""
    dataset = load_dataset(write(tmp_path / "coats", garments(12, size)), data_dir=tmp_path, preprocess="auto")
    assert (dataset.preprocess, dataset.train.features) == ("none", None)
    names = sorted(f"{index}.png" for index in range(12))
    assert np.array_equal(dataset.train.images, garments(12)[[int(name[:-4]) for name in names]])
    assert "look like no digits" in caplog.text and "--preprocess digit" in caplog.text


def test_photographs_are_only_resized(tmp_path):
    """Synthetic pictures of things, in every size and colour, dark or light around."""
    pictures = [draw_picture(np.random.default_rng(seed)) for seed in range(30)]
    assert load_dataset(write(tmp_path / "things", pictures), data_dir=tmp_path, preprocess="auto").preprocess == "none"


@pytest.mark.parametrize("invert", [False, True])
def test_strokes_are_prepared_as_digits(tmp_path, caplog, invert):
    """In arrays and files, on dark and on white, without a warning."""
    images = 255 - stroke_images(20, seed=1) if invert else stroke_images(20, seed=1)
    np.save(tmp_path / "a.npy", images)
    large = write(tmp_path / "large", images.repeat(3, axis=1).repeat(3, axis=2))
    for source in (str(tmp_path / "a.npy"), large):
        assert load_dataset(source, data_dir=tmp_path, preprocess="auto").preprocess == "digit"
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def test_the_preparation_can_be_said(tmp_path):
    """Against what the images look like; files of several sizes are one kind where they are only resized."""
    folder = tmp_path / "strokes"
    write(folder, stroke_images(3, seed=1))
    Image.fromarray(stroke_images(1, seed=2)[0]).resize((90, 60)).save(folder / "large.png")
    assert load_dataset(str(folder), data_dir=tmp_path, preprocess="none").train.images.shape == (4, 28, 28)
    np.save(tmp_path / "a.npy", garments(3))
    assert load_dataset(str(tmp_path / "a.npy"), data_dir=tmp_path, preprocess="digit").preprocess == "digit"
