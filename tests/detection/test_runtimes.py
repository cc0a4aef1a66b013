"""Which runtime serves on which machine, and that both give the same scores."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from live import ROOT
from strokes import stroke_images

from app.detection import runtimes, store
from app.detection.detector import Detector
from app.detection.runtimes import DeviceError, OnnxRuntime, TorchRuntime, choose_device

IMAGES = stroke_images(40, seed=21)


@pytest.fixture(scope="module")
def shipped(shipped_store):
    """The shipped bundle, with a residual scorer."""
    return store.load(store.find(shipped_store, "mnist"))


@pytest.mark.parametrize("with_maps", [False, True])
def test_both_runtimes_give_the_same_outputs(shipped, with_maps):
    """Scores, errors, embeddings and pictures agree to 1e-4 on the CPU."""
    outputs = [runtime.run(IMAGES, with_maps=with_maps) for runtime in (OnnxRuntime(shipped), TorchRuntime(shipped, "cpu"))]
    for onnx, torch_ in zip(*outputs, strict=True):
        assert (onnx is None) == (torch_ is None)
        if onnx is not None:
            assert onnx.dtype == torch_.dtype == np.float32
            np.testing.assert_allclose(onnx, torch_, rtol=1e-4, atol=1e-4)


def test_both_runtimes_decode_alike(shipped):
    """The decoder model is the second half of the network."""
    embeddings = np.array([[0, 0], [3, -5], [100, 100]], np.float32)
    onnx, torch_ = OnnxRuntime(shipped).decode(embeddings), TorchRuntime(shipped, "cpu").decode(embeddings)
    assert onnx.shape == (3, 28, 28)
    np.testing.assert_allclose(onnx, torch_, atol=1e-5)


def test_a_score_does_not_depend_on_the_batch(shipped):
    """Alone or among others, an image's score differs by at most 2e-6 of itself."""
    runtime = OnnxRuntime(shipped)
    together = runtime.run(IMAGES, with_maps=False).score
    for size in (1, 3, 7):
        parts = [runtime.run(IMAGES[start : start + size], with_maps=False).score for start in range(0, len(IMAGES), size)]
        np.testing.assert_allclose(np.concatenate(parts), together, rtol=2e-6)


def test_a_batch_that_exhausts_the_devices_memory_is_halved(shipped, monkeypatch):
    """The halves run one after the other, and their outputs come in order."""
    runtime = TorchRuntime(shipped, "cpu")
    expected, upload, sizes = runtime.run(IMAGES, with_maps=True), runtime._copy_to_device, []

    def upload_at_most_ten(images):
        sizes.append(len(images))
        if len(images) > 10:
            raise torch.OutOfMemoryError
        return upload(images)

    monkeypatch.setattr(runtime, "_copy_to_device", upload_at_most_ten)
    for found, wanted in zip(runtime.run(IMAGES, with_maps=True), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert sizes == [40, 20, 10, 10, 20, 10, 10]


def test_an_image_that_does_not_fit_alone_is_an_error(shipped, monkeypatch):
    """Halving ends at one image."""

    def exhausted(images):
        raise torch.OutOfMemoryError

    runtime = TorchRuntime(shipped, "cpu")
    monkeypatch.setattr(runtime, "_copy_to_device", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        runtime.run(IMAGES[:2], with_maps=False)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", "cuda:x", "meta", "xpu", "cpu:1:2", "CPU!", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused_with_a_sentence(name):
    """Misspelt, unsupported and absent devices end in a DeviceError that says what to use."""
    with pytest.raises(DeviceError, match="use"):
        choose_device(name)


@pytest.mark.parametrize(("device", "runtime"), [("cuda", "onnx"), ("mps", "onnx"), ("cpu", "tensorrt")])
def test_a_runtime_that_cannot_serve_is_refused(device, runtime):
    """ONNX Runtime serves on the CPU only, and there are two runtimes."""
    with pytest.raises(DeviceError, match="use"):
        choose_device(device, runtime)


def test_a_gpu_without_torch_is_refused_with_the_command_that_installs_it(monkeypatch):
    """The core installation has no torch."""
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"pip install \"oddigit\[gpu\]\""):
        choose_device("cuda")
    assert choose_device("auto") == "cpu"


def test_auto_takes_cuda_where_torch_sees_it():
    """Else the CPU."""
    assert choose_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == "cpu"


def test_the_runtime_can_be_chosen(tiny_bundle):
    """On a CPU, ONNX Runtime serves unless torch is asked for."""
    assert Detector(tiny_bundle, "cpu").runtime == "onnx"
    assert Detector(tiny_bundle, "cpu", "torch").runtime == "torch"
    assert Detector(replace(tiny_bundle), "auto", "onnx").device == "cpu"


def test_detection_on_a_cpu_imports_no_torch(shipped_store):
    """From the store to the scores, in a process of its own."""
    code = (
        "import sys, numpy as np; from pathlib import Path; from app.detection import store;"
        "from app.detection.detector import Detector;"
        f"detector = Detector(store.load(store.find(Path({str(shipped_store)!r}), 'mnist')));"
        "detector.self_check(); detector.detect(np.zeros((3, 28, 28), np.uint8), error_maps=True);"
        "assert not {'torch', 'onnx', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.gpu
def test_cuda_scores_as_the_cpu_does(shipped, data_root):
    """On the MNIST test images: scores within 1e-3, and the same verdicts but for scores at the threshold."""
    pixels = (data_root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)
    cpu, cuda = (Detector(shipped, device).detect(images, reconstructions=True, error_maps=True) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(cuda.scores, cpu.scores, rtol=1e-3)
    np.testing.assert_allclose(cuda.reconstructions, cpu.reconstructions, atol=1e-3)
    clear = np.abs(cpu.scores / shipped.card.threshold - 1) > 1e-3
    assert np.array_equal((cuda.scores > shipped.card.threshold)[clear], (cpu.scores > shipped.card.threshold)[clear])
