"""The tutorial's anomaly score: the mean squared error between an image and its reconstruction."""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from app.network.autoencoder import ForwardPass


def reconstruction_error(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean squared residual over the pixels: [N, pixels] twice -> [N]. The training loss of each image."""
    return sum_of_squares(images - reconstructions) / images.shape[1]


def sum_of_squares(values: Tensor) -> Tensor:
    """[N, K, ...] -> [N, ...]. A product, because ONNX Runtime computes it faster than a power."""
    return (values * values).sum(1)


class MseScorer(nn.Module):
    """Scores images by their reconstruction error. Has no weights."""

    name: ClassVar[str] = "mse"

    def forward(self, out: ForwardPass) -> Tensor:
        """-> scores [N]."""
        return reconstruction_error(out.images, out.reconstructions)

    def error_map(self, out: ForwardPass) -> Tensor:
        """-> [N, pixels]: each squared residual in units of the image's mean squared residual."""
        residuals = out.images - out.reconstructions
        squared = residuals * residuals
        return squared / squared.mean(1, keepdim=True).clamp(min=1e-12)

    def tensors(self) -> Mapping[str, Tensor]:
        """The fitted tensors by name: none."""
        return {}
