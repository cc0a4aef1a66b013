"""The packages of the extra `train`, which serving does not need."""

from app.detection.extras import check_installed

PACKAGES = ("torch", "torchvision", "matplotlib", "sklearn", "scipy", "onnx", "onnxscript")


def check_training_extra() -> None:
    """Raise MissingPackage if a package of the extra is missing. Commands call this before any slow work."""
    check_installed("train", *PACKAGES)
