"""The named sets are read by torchvision."""

import numpy as np
import pytest
from strokes import stroke_images

from app.training.datasets import DataError, load_dataset

IMAGES = stroke_images(12, seed=3)


def test_failed_download(tmp_path, monkeypatch):
    """Without files and without a network the sentence says where to put the files, and no folder is left behind."""
    from torchvision.datasets import mnist

    def offline(*args, **kwargs):
        raise mnist.URLError("no network")

    monkeypatch.setattr(mnist, "download_and_extract_archive", offline)
    with pytest.raises(DataError, match="--data-dir"):
        load_dataset("kmnist", data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_emnist_is_turned_upright(monkeypatch, tmp_path):
    """EMNIST's files hold every image transposed; we do not."""
    import torch
    from torchvision import datasets

    class EMNIST:
        def __init__(self, root, **options):
            self.data, self.targets = torch.from_numpy(IMAGES.transpose(0, 2, 1).copy()), torch.arange(12)

    monkeypatch.setattr(datasets, "EMNIST", EMNIST)
    assert np.array_equal(load_dataset("emnist-digits", data_dir=tmp_path, preprocess="none").train.images, IMAGES)
