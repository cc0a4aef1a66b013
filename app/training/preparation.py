"""Which preparation suits a set of images: that of digits for strokes on plain paper, none for pictures of things.

Prepared as digits, clothes lose what tells them from digits: their size, their place and their grey values.
"""

import logging
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from app.detection.imaging.decode import Preprocess
from app.detection.imaging.morphology import erode
from app.detection.imaging.preprocess import PreprocessedImage
from app.detection.imaging.upload_features import FEATURE_NAMES
from app.detection.model_card import Preparation

logger = logging.getLogger(__name__)

SAMPLE = 200  # images that are looked at
# Of MNIST's, USPS's and Chars74K's digits and of letters 1 to 8 % are called things, of notMNIST's letters, many of them
# bold, 21 %, of drawings with a thick pen 33 %; of clothes 79 to 88 %, of photographs of things 74 to 87 %.
MOST_THINGS = 0.5  # share of a set of digits
THICKEST = 3  # pixels of the 20-pixel box: the radius of a square that fits into no stroke
INK, FULL = 0.4, 0.45  # intensity of ink; share of the bounding box that ink of a thing fills
SHADED = 0.28  # share of the variance of the pixels that two levels do not explain, in photographs


def sample(count: int) -> range:
    """Indices of at most SAMPLE of `count` images, spread evenly."""
    return range(0, count, max(1, -(-count // SAMPLE)))


def choose_preparation(asked: Preprocess, prepared: Iterable[PreprocessedImage], name: str) -> Preparation:
    """The preparation that was asked for; for `auto`, the one that suits the images called `name`.

    `prepared` is a sample of them, prepared as digits. If they look like no digits, the log says so.
    """
    if asked != "auto":
        return asked
    things = [_is_thing(image.image, image.features) for image in prepared if image.features is not None]
    if not things or np.mean(things) <= MOST_THINGS:
        return "digit"
    logger.warning(
        "The images of %s look like no digits: uploads are only resized, not prepared as digits (--preprocess none). "
        "If they are digits, say --preprocess digit.", name
    )  # fmt: skip
    return "none"


def _is_thing(image: NDArray[np.uint8], features: NDArray[np.float32]) -> bool:
    """Whether an image [S, S] that was prepared as a digit is a solid shape or a photograph, rather than strokes."""
    fill, blend = (np.exp(features[FEATURE_NAMES.index(name)]) - 0.02 for name in ("fill", "blend"))
    is_solid = erode(image.astype(np.float32) / np.float32(255), THICKEST).max() > INK and fill > FULL
    return bool(is_solid or blend > SHADED)
