"""Which runtime serves on which machine, and that both give the same scores."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from live import ROOT
from strokes import stroke_images

from app.detection import runtimes, store
from app.detection.detector import Detector
from app.detection.runtimes import DeviceError, OnnxRuntime, TorchRuntime, choose_device, load_network
from app.network import cuda_graphs

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
    with pytest.raises(DeviceError, match=r"pip install \"oddigit\[gpu\]\""):
        choose_device("auto", "torch")
    assert choose_device("auto") == "cpu"


def test_auto_takes_cuda_where_torch_sees_it():
    """Else the CPU."""
    assert choose_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == "cpu"


@pytest.mark.parametrize(
    ("torch_version", "is_available", "capability", "reason"),
    [
        (None, False, (9, 0), "built without CUDA"),
        ("13.0", False, (9, 0), "driver is too old for CUDA 13.0"),
        ("13.0", True, (7, 0), "compute capability 7.0, too old"),
        ("13.0", True, (9, 0), None),
    ],
)
def test_auto_takes_the_cpu_where_torch_cannot_use_the_gpu(
    monkeypatch, caplog, torch_version, is_available, capability, reason
):
    """torch counts GPUs whose driver or generation is too old for it. The log says once why the CPU is used."""
    monkeypatch.setattr(runtimes, "_cuda_driver_present", lambda: True)
    runtimes._warn_once.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", torch_version)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_120"])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert choose_device() == choose_device() == ("cpu" if reason else "cuda")
    if reason:
        assert caplog.text.count("the CPU is used") == 1 and reason in caplog.text
        with pytest.raises(DeviceError, match=reason):
            choose_device("cuda:0")


@pytest.mark.parametrize("method", ["score", "decode"])
def test_a_device_that_failed_is_lost(shipped, monkeypatch, method):
    """Each further call would fail too: the server has to know."""

    def fail(batch):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    detector = Detector(shipped, "cpu", "torch")
    assert not detector.is_lost and not Detector(shipped, "cpu").is_lost
    monkeypatch.setattr(detector._runtime._network, method, fail)
    with pytest.raises(torch.AcceleratorError):
        detector.detect(IMAGES) if method == "score" else detector.decode(np.zeros((1, 2), np.float32))
    assert detector.is_lost


def test_a_device_that_cannot_be_used_is_an_error_in_words(shipped, monkeypatch):
    """Whatever torch raises while the weights are moved there."""

    def fail(network, device):
        raise RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED\nsecond line")

    monkeypatch.setattr(torch.nn.Module, "to", fail)
    with pytest.raises(DeviceError, match=r"^cpu cannot be used: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED$"):
        TorchRuntime(shipped, "cpu")


def test_a_network_takes_a_stream_that_no_other_uses(monkeypatch):
    """torch hands out the same streams again and again."""
    offered = iter([0, 1, 2, 3] * 100)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: next(offered))
    networks = [SimpleNamespace(stream=number) for number in (0, 1, 3)]
    monkeypatch.setattr(cuda_graphs, "_networks", networks)
    assert cuda_graphs.unused_stream() == 2


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
        f"detector = Detector(store.load(store.find(Path({str(shipped_store)!r}), 'mnist')), 'cpu');"
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


@pytest.mark.gpu
@pytest.mark.parametrize("with_maps", [False, True])
def test_a_batch_of_any_size_runs_in_cuda_graphs(shipped, with_maps):
    """Smaller, equal and larger than the captured sizes: the outputs are those of the uncaptured network."""
    network, runtime = load_network(shipped).to("cuda").eval(), TorchRuntime(shipped, "cuda")
    images = np.concatenate([IMAGES] * 110)
    with torch.inference_mode():
        expected = (network if with_maps else network.score)(torch.from_numpy(images).to("cuda"))
    for size in (0, 1, 2, 8, 33, 512, 513, 2048, 2049, len(images)):
        found = runtime.run(images[:size], with_maps=with_maps)
        for ours, theirs in zip([each for each in found if each is not None], expected, strict=True):
            np.testing.assert_allclose(ours, theirs[:size].cpu().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_threads_share_the_cuda_graphs(shipped):
    """Eight threads with images of their own, while other versions are loaded and dropped: each gets its own scores."""
    runtime = TorchRuntime(shipped, "cuda")
    batches = [stroke_images(20, seed=seed) for seed in range(8)]
    expected = [runtime.run(batch, with_maps=False).score for batch in batches]

    def ask(number):
        if number % 50 == 0:
            TorchRuntime(shipped, "cuda")
        return runtime.run(batches[number % 8], with_maps=False).score

    with ThreadPoolExecutor(8) as pool:
        for number, scores in enumerate(pool.map(ask, range(400))):
            np.testing.assert_array_equal(scores, expected[number % 8])


@pytest.mark.gpu
def test_a_device_without_free_memory_is_refused_with_a_sentence(shipped):
    """All memory is allocated while loading, so it is there that it can be too little."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        with pytest.raises(DeviceError, match="too little free memory"):
            TorchRuntime(shipped, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
