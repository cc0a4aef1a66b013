import base64
import io
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image
from strokes import stroke_images

from app.detection.detector import Detector
from app.serving import schemas
from app.serving.api import responses as answers
from app.serving.api.responses import ImageInfo

IMAGES = stroke_images(4, seed=7)
SHOWN = [ImageInfo(f"{index}.png", ("cropped",), ("blank",)) for index in range(4)]


@pytest.fixture(scope="module")
def detections(tiny_bundle):
    """What the tiny detector says of four images, with all pictures."""
    return Detector(tiny_bundle, "cpu").detect(IMAGES, reconstructions=True, error_maps=True)


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_entries_are_those_of_the_schemas(detections):
    """What is built by hand is what the contract's models describe, image by image in order."""
    threshold = float(detections.scores[2])
    scores = [
        schemas.Score.model_validate(entry) for entry in answers.score_entries(SHOWN, detections, range(4), "digit", threshold)
    ]
    embeddings = [schemas.Embedding.model_validate(entry) for entry in answers.embed_entries(SHOWN, detections, range(4))]
    pictures = [
        schemas.Reconstruction.model_validate(entry)
        for entry in answers.reconstruct_entries(SHOWN, IMAGES, detections, range(4))
    ]
    for entries in (scores, embeddings, pictures):
        assert [entry.name for entry in entries] == ["0.png", "1.png", "2.png", "3.png"]
        assert all(list(entry.preprocess) == ["cropped"] and list(entry.warnings) == ["blank"] for entry in entries)
    assert [entry.is_anomaly for entry in scores] == (detections.scores > threshold).tolist()
    assert [entry.embedding for entry in embeddings] == detections.embeddings.tolist()


def test_the_input_picture_is_the_image_that_the_network_saw(detections):
    """Its pixels come back to the last one; the others have its size."""
    for index, entry in enumerate(answers.reconstruct_entries(SHOWN, IMAGES, detections, range(4))):
        given_, made, error = (opened(base64.b64decode(entry[key])) for key in ("input", "reconstruction", "error_map"))
        assert np.array_equal(given_, stroke_images(4, seed=7)[index])
        assert made.shape == (28, 28)
        assert error.shape[:2] == (28, 28)


def test_a_sheet_has_a_row_an_image_and_three_columns(detections):
    """Each row is wider than it is high by about three, and every image adds the same height."""
    heights = [opened(answers.contact_sheet(IMAGES[:n], detections.part(0, n))).shape[0] for n in (1, 2, 4)]
    width = opened(answers.contact_sheet(IMAGES, detections)).shape[1]
    assert heights[2] - heights[1] == 2 * (heights[1] - heights[0])
    assert 2.5 < width / heights[0] < 3.1


@given(npst.arrays(np.float32, (28, 28), elements=st.floats(0, 2.0**60, width=32)))
def test_heat_rises_with_the_error(error_map):
    """A larger error is never darker, none is black, and any size of error is a colour."""
    brightness = answers.heat(error_map).astype(int).sum(-1)
    order = np.argsort(error_map, axis=None)
    assert answers.heat(error_map).shape == (28, 28, 3)
    assert (np.diff(brightness.ravel()[order]) >= 0).all()
    assert (brightness[error_map == 0] == 0).all()


@given(npst.arrays(st.sampled_from([np.float32, np.uint8, np.float64]), npst.array_shapes(max_dims=3)))
def test_an_array_answer_reads_back_the_same(array):
    """What `npy` writes, numpy reads without pickling, to the bit."""
    again = np.load(io.BytesIO(answers.npy(array)), allow_pickle=False)
    assert again.dtype == array.dtype
    assert again.tobytes() == np.ascontiguousarray(array).tobytes()
    assert again.shape == array.shape


def test_json_knows_no_nan():
    """Numbers that JSON cannot say never come out as text that is no JSON."""
    text = answers.json_bytes({"a": [math.nan, math.inf, -math.inf, 1.5], "name": 'é \u2028 " \x00'})
    assert json.loads(text) == {"a": [None, None, None, 1.5], "name": 'é \u2028 " \x00'}
