"""The whole detector as one module, the only definition of its mathematics, and its export to ONNX.

In: uint8 images. Out: scores, reconstruction errors, embeddings, reconstructions and error maps. On CUDA and MPS the module
itself runs; on a CPU its ONNX export runs in ONNX Runtime.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from app.network.autoencoder import Autoencoder
from app.network.mse_scorer import MseScorer, reconstruction_error
from app.network.residual_scorer import ResidualScorer

if TYPE_CHECKING:
    from onnx import ModelProto

Scorer = MseScorer | ResidualScorer
SCORERS = {scorer.name: scorer for scorer in (ResidualScorer, MseScorer)}

WEIGHTS_SHA256 = "autoencoder_pth_sha256"  # metadata key of an exported model
_EXAMPLE_IMAGES = 3  # the exporter traces with them; any number above 1 leaves the batch dimension free


class Outputs(NamedTuple):
    """The network's outputs for N images, in the order and with the names of the ONNX model."""

    score: Tensor  # [N], higher = more anomalous
    reconstruction_error: Tensor  # [N], mean squared residual in [-1, 1] units
    embedding: Tensor  # [N, latent_dim]
    reconstruction: Tensor  # [N, S, S] in [0, 1], 0 = background
    error_map: Tensor  # [N, S, S], not negative, 1 = a usual residual


class DetectorNetwork(nn.Module):
    """An autoencoder and a fitted scorer."""

    def __init__(self, autoencoder: Autoencoder, scorer: Scorer) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.scorer = scorer

    def forward(self, images: Tensor) -> Outputs:
        """uint8 [N, S, S], 0 = background, 255 = ink -> `Outputs`."""
        side = self.autoencoder.config.image_size
        out = self.autoencoder.run(normalise(images))
        return Outputs(
            score=self.scorer(out),
            reconstruction_error=reconstruction_error(out.images, out.reconstructions),
            embedding=out.embeddings,
            reconstruction=_to_unit_range(out.reconstructions).view(-1, side, side),
            error_map=self.scorer.error_map(out).view(-1, side, side),
        )

    def score(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 [N, S, S] -> the first three of `Outputs`, without the cost of the pictures."""
        out = self.autoencoder.run(normalise(images))
        return self.scorer(out), reconstruction_error(out.images, out.reconstructions), out.embeddings

    def decode(self, embeddings: Tensor) -> Tensor:
        """float32 [N, latent_dim] -> images [N, S, S] in [0, 1]."""
        side = self.autoencoder.config.image_size
        return _to_unit_range(self.autoencoder.decode(embeddings)).view(-1, side, side)


def normalise(images: Tensor) -> Tensor:
    """uint8 [N, S, S] -> float32 [N, S * S] in [-1, 1]: the tutorial's ToTensor and Normalize(0.5, 0.5)."""
    return images.flatten(1).float() / 127.5 - 1


def make_scorer(name: str, tensors: Mapping[str, Tensor]) -> Scorer:
    """The scorer called `name` with these fitted tensors.

    Raises:
        ValueError: there is no scorer of that name, or a tensor is not acceptable.
        KeyError: a tensor is missing.
    """
    if name == MseScorer.name:
        return MseScorer()
    if name == ResidualScorer.name:
        return ResidualScorer(tensors)
    raise ValueError(f"there is no scorer named {name!r}; there are: {', '.join(SCORERS)}")


class OnnxModels(NamedTuple):
    """The exported detector and two parts of it, each a serialised ONNX model. Inputs and outputs are named as below."""

    detector: bytes  # images uint8 [n, S, S] -> every field of `Outputs`
    scores: bytes  # images -> score, reconstruction_error, embedding
    decoder: bytes  # embedding float32 [n, latent_dim] -> reconstruction


def export_onnx(network: DetectorNetwork, weights_sha256: str) -> OnnxModels:
    """Export the network. The metadata of each model names the sha256 of the weights file, under WEIGHTS_SHA256.

    The parts are cut out of the one exported graph, because ONNX Runtime computes every output of a model, wanted or not:
    without the pictures a score takes two thirds of the time.

    Raises:
        ImportError: onnx or onnxscript is not installed.
    """
    from onnx import helper
    from onnx.utils import Extractor

    whole = _export(network)
    parts = Extractor(whole)
    models = (
        whole,
        parts.extract_model(["images"], list(Outputs._fields[:3])),
        parts.extract_model(["embedding"], ["reconstruction"]),
    )
    for model in models:
        helper.set_model_props(model, {WEIGHTS_SHA256: weights_sha256})
    return OnnxModels(*(model.SerializeToString(deterministic=True) for model in models))


def _export(network: DetectorNetwork) -> "ModelProto":
    side = network.autoencoder.config.image_size
    with _quiet_exporter():
        program = torch.onnx.export(
            copy.deepcopy(network).cpu().eval(),
            (torch.zeros(_EXAMPLE_IMAGES, side, side, dtype=torch.uint8),),
            input_names=["images"],
            output_names=list(Outputs._fields),
            dynamic_shapes={"images": {0: torch.export.Dim("n")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # None only where the exporter writes a file itself
    model = program.model_proto
    for item in (*model.graph.node, *model.graph.input, *model.graph.output, *model.graph.value_info):
        del item.metadata_props[:]  # the exporter records stack traces with paths of the machine
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _to_unit_range(decoded: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]."""
    return (decoded + 1) / 2
