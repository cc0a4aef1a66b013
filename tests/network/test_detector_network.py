"""The whole network as one module, and its ONNX export."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import QuickExport
from strokes import stroke_images

from app.network import detector_network
from app.network.autoencoder import Autoencoder, ModelConfig
from app.network.detector_network import WEIGHTS_SHA256, DetectorNetwork, Outputs, export_onnx, make_scorer, normalise
from app.network.mse_scorer import MseScorer

IMAGES = stroke_images(9, seed=3)


@pytest.fixture(scope="module")
def network():
    """An untrained network for images of 8x8 with a latent space of three dimensions."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DetectorNetwork(Autoencoder(ModelConfig(8, (16,), 3)), MseScorer()).eval()


@pytest.fixture(scope="module")
def models(network):
    """Its export."""
    return export_onnx(network, "digest")


def outputs(model, images):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, images)


def test_images_are_scaled_as_the_tutorial_scales_them():
    """0 becomes -1, 255 becomes 1, as ToTensor and Normalize(0.5, 0.5) make them."""
    levels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    expected = (levels.flatten(1).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(normalise(levels), expected, rtol=0, atol=1e-6)
    assert normalise(levels)[0, [0, 255]].tolist() == [-1, 1]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_export_reproduces_the_module_for_any_number_of_images(network, models, count):
    """Every output of the ONNX model has the name, the shape and the numbers of the module's."""
    images = np.random.RandomState(0).randint(0, 256, (count, 8, 8)).astype(np.uint8)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images))
    found = outputs(models.detector, {"images": images})
    for name, wanted, got in zip(Outputs._fields, expected, found, strict=True):
        np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)


def test_the_parts_of_the_export_give_what_the_whole_gives(models):
    """scores.onnx has the first three outputs; decoder.onnx makes reconstructions of embeddings."""
    images = np.random.RandomState(1).randint(0, 256, (4, 8, 8)).astype(np.uint8)
    whole, scores = outputs(models.detector, {"images": images}), outputs(models.scores, {"images": images})
    for part, other in zip(scores, whole[:3], strict=True):
        np.testing.assert_allclose(part, other, rtol=1e-6)
    np.testing.assert_allclose(outputs(models.decoder, {"embedding": whole[2]})[0], whole[3], atol=1e-6)


def test_the_export_names_its_weights_and_no_path_of_the_machine(models):
    """The metadata holds the digest of the weights file, and no stack traces of the exporter."""
    for content in models:
        assert {item.key: item.value for item in onnx.ModelProto.FromString(content).metadata_props} == {
            WEIGHTS_SHA256: "digest"
        }
        assert b".py" not in content


def test_an_unknown_scorer_is_refused_with_those_there_are():
    """A misspelt name fails with a sentence that lists the names."""
    with pytest.raises(ValueError, match="residual, mse"):
        make_scorer("msr", {})


def test_the_quick_export_of_the_tests_is_the_exporters():
    """The graph of another network of the architecture, with these weights, is the same to the byte."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one, other = (DetectorNetwork(Autoencoder(ModelConfig(8, (16,), 3)), MseScorer()).eval() for _ in range(2))
    export = QuickExport(getattr(detector_network._export, "real", detector_network._export))
    export(one)
    assert export(other).SerializeToString(deterministic=True) == export.real(other).SerializeToString(deterministic=True)
