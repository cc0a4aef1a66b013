"""Splits a data set into the images that fit the network, that calibrate the threshold, and that test both."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.training.config import CALIBRATION_SHARE
from app.training.datasets import DataError, DataSet, LabelledImages

TEST_SHARE = 1 / 7  # of a set without a test part; MNIST's own is 10,000 of 70,000
SMALLEST_CLASS = 20  # images; smaller classes count as one, because the first image of each would be in the same part


@dataclass(frozen=True)
class Splits:
    """A data set in three disjoint parts."""

    fit: LabelledImages  # for the network and the scorer
    calibration: LabelledImages  # for the threshold
    test: LabelledImages  # for the reported figures


def split(
    dataset: DataSet, seed: int, calibration_share: float = CALIBRATION_SHARE, smallest_class: int = SMALLEST_CLASS
) -> Splits:
    """Split by `seed`, equally on every machine. If the set has no test part, TEST_SHARE of its images becomes the test part.

    Each class is divided by the shares; classes of fewer than `smallest_class` images are divided as one class.

    Raises:
        DataError: there are too few images for three parts.
    """
    rng = np.random.RandomState(seed)  # not a Generator: numpy guarantees that this stream never changes
    rest, test = dataset.train, dataset.test
    if test is None:
        test, rest = _divide(rest, TEST_SHARE, rng, smallest_class)
    calibration, fit = _divide(rest, calibration_share, rng, smallest_class)
    if not (len(fit) and len(calibration) and len(test)):
        raise DataError(f"{dataset.name} holds {len(dataset.train)} images: too few to fit, calibrate and test with.")
    return Splits(fit, calibration, test)


def _divide(
    whole: LabelledImages, share: float, rng: np.random.RandomState, smallest_class: int
) -> tuple[LabelledImages, LabelledImages]:
    """Divide at random into `share` of the images and the rest, stratified by class where labels are known."""
    order = rng.permutation(len(whole))
    if whole.labels is not None:
        _, classes, counts = np.unique(whole.labels, return_inverse=True, return_counts=True)
        classes[counts[classes] < smallest_class] = -1
        order = order[np.argsort(_relative_rank_in_class(classes[order]), kind="stable")]
    cut = round(len(whole) * share)
    return whole.take(order[:cut]), whole.take(order[cut:])


def _relative_rank_in_class(classes: NDArray[np.intp]) -> NDArray[np.float64]:
    """For each image, how many images of its class come before it in `classes` [N], divided by the size of the class: [N]."""
    ranks = np.empty(len(classes))
    for each in np.unique(classes):
        (members,) = np.nonzero(classes == each)
        ranks[members] = np.arange(len(members)) / len(members)
    return ranks


def split_again(dataset: DataSet, data: Mapping[str, Any]) -> Splits:
    """Split a data set as its card says that it was split."""
    return split(dataset, data["split_seed"], data["calibration_share"], data.get("smallest_class", 0))  # older cards have none
