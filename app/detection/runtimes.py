"""Runs the detector's network: in ONNX Runtime on a CPU, in torch on CUDA and MPS, behind one call.

A server on a CPU imports no torch. `auto` tries to load the NVIDIA driver's library before it imports torch to look for CUDA.
This is the only file of `detection` that imports `app.network`.
"""

import ctypes
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from app.detection.bundle import (
    DETECTOR_ONNX,
    ONNX_FILES,
    WEIGHTS,
    Bundle,
    BundleError,
    first_line,
    sha256,
)
from app.detection.extras import install_command

if TYPE_CHECKING:
    import torch
    from onnxruntime import InferenceSession

    from app.network.detector_network import DetectorNetwork

Images = NDArray[np.uint8]
Floats = NDArray[np.float32]

logger = logging.getLogger(__name__)

_MPS_LOCK = threading.Lock()  # two threads that use MPS at the same time may end the process

WEIGHTS_SHA256 = "autoencoder_pth_sha256"  # metadata key, as in app/network/detector_network.py


class DeviceError(RuntimeError):
    """The device or runtime that was asked for is not available; the message says what to install or to choose."""


class NetworkOutputs(NamedTuple):
    """The network's outputs for N images; names and ranges as in app/network/detector_network.py."""

    score: Floats  # [N]
    reconstruction_error: Floats  # [N]
    embedding: Floats  # [N, latent_dim]
    reconstruction: Floats | None = None  # [N, S, S] in [0, 1]; None without maps
    error_map: Floats | None = None  # [N, S, S]; None without maps


class OnnxRuntime:
    """The exported models in ONNX Runtime, on the CPU. Safe to call from several threads."""

    name, device = "onnx", "cpu"
    is_lost = False  # a CPU does not fail
    # Images of a forward pass that large arrays are best cut into: 2 ms. 512 are 8 % faster, but keep 33 MiB.
    chunk_size = 128

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """`threads` is the number of threads of one forward pass.

        Raises:
            BundleError: a model is missing, cannot be loaded, or was exported from other weights.
        """
        self._full_session, self._score_session, self._decoder_session = (
            _open_session(bundle, name, threads) for name in ONNX_FILES
        )
        self._names, self._score_names = (  # without names, ONNX Runtime lists them at each run: a sixth of one image's time
            [output.name for output in session.get_outputs()] for session in (self._full_session, self._score_session)
        )
        size, latent_dim = bundle.card.architecture.image_size, bundle.card.architecture.latent_dim
        shapes = self._full_session.get_inputs()[0].shape[1:], self._decoder_session.get_inputs()[0].shape[1:]
        if shapes != ([size, size], [latent_dim]):
            raise BundleError(f"{DETECTOR_ONNX} of {bundle.label} has other dimensions than its card; publish it again.")

    def run(self, images: Images, *, with_maps: bool) -> NetworkOutputs:
        """uint8 [N, S, S] -> outputs; `with_maps` adds reconstructions and error maps."""
        session, names = (self._full_session, self._names) if with_maps else (self._score_session, self._score_names)
        return NetworkOutputs(*session.run(names, {"images": images}))

    def decode(self, embeddings: Floats) -> Floats:
        """float32 [N, latent_dim] -> images [N, S, S] in [0, 1]."""
        images: Floats = self._decoder_session.run(None, {"embedding": embeddings})[0]
        return images


class TorchRuntime:
    """The network itself in torch: on CUDA and MPS, or on a CPU where that is asked for. It has the methods of OnnxRuntime."""

    name = "torch"
    chunk_size = 512
    is_lost = False  # True once the device has failed: the process cannot use it any more

    def __init__(self, bundle: Bundle, device: str, threads: int = 1) -> None:
        """Load the weights onto `device`. Raises BundleError, DeviceError."""
        import torch

        from app.network.cuda_graphs import CudaNetwork

        self.device = device
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")  # no TF32: scores must agree between devices
        network = load_network(bundle)
        self._lock: AbstractContextManager[object] = _MPS_LOCK if device.startswith("mps") else nullcontext()
        try:
            with self._lock:
                self._network = network.to(device).eval()
            self._cuda_network = CudaNetwork(self._network, torch.device(device)) if device.startswith("cuda") else None
        except torch.OutOfMemoryError as error:
            raise DeviceError(f"{device} has too little free memory: {first_line(error)}") from error
        except RuntimeError as error:  # of the driver, or of CUDA's libraries
            raise DeviceError(f"{device} cannot be used: {first_line(error)}") from error

    def run(self, images: Images, *, with_maps: bool) -> NetworkOutputs:
        import torch

        with self._detecting_failure():
            if self._cuda_network is not None:
                return NetworkOutputs(*self._cuda_network.run(images, with_maps=with_maps))
            with self._lock, torch.inference_mode():
                batch = torch.tensor(images).to(self.device)  # copied, because it may be a read-only view of a request
                outputs = self._network(batch) if with_maps else self._network.score(batch)
                return NetworkOutputs(*(output.cpu().numpy() for output in outputs))

    def decode(self, embeddings: Floats) -> Floats:
        import torch

        with self._detecting_failure(), self._lock, torch.inference_mode():
            images: Floats = self._network.decode(torch.from_numpy(embeddings).to(self.device)).cpu().numpy()
            return images

    @contextmanager
    def _detecting_failure(self) -> Iterator[None]:
        """Set `is_lost` if the device fails inside the block."""
        import torch

        try:
            yield
        except torch.AcceleratorError:
            self.is_lost = True
            raise


Runtime = OnnxRuntime | TorchRuntime


def make_runtime(bundle: Bundle, device: str = "auto", runtime: str = "auto", threads: int = 1) -> Runtime:
    """The runtime for `device` (auto, cpu, cuda, cuda:N, mps) and `runtime` (auto, onnx, torch).

    Raises:
        DeviceError: the device or runtime is not available.
        BundleError: the bundle's files cannot be used with it.
    """
    chosen = choose_device(device, runtime)
    if chosen != "cpu" or runtime == "torch":
        return TorchRuntime(bundle, chosen, threads)
    if all(name in bundle.files for name in ONNX_FILES):
        return OnnxRuntime(bundle, threads)
    if runtime == "auto" and find_spec("torch"):
        return TorchRuntime(bundle, chosen, threads)
    raise BundleError(
        f"{bundle.label} has no {DETECTOR_ONNX}, because an older release published it. Add it with "
        f"`oddigit export --model {bundle.card.name} --version {bundle.card.version} --publish`, or install PyTorch: "
        f"{install_command('gpu')}"
    )


def choose_device(device: str = "auto", runtime: str = "auto") -> str:
    """The device to run on: `cpu`, `cuda`, `cuda:N` or `mps`. `auto` takes CUDA where torch can use it, else the CPU.

    Raises:
        DeviceError: the device or runtime is not available; the message says what to install or to choose.
    """
    if runtime not in ("auto", "onnx", "torch"):
        raise DeviceError(f"{runtime!r} is not a runtime; use auto, onnx or torch.")
    if runtime == "onnx":
        if device not in ("auto", "cpu"):
            raise DeviceError(f"ONNX Runtime serves on the CPU only, but {device} was asked for; use runtime auto or torch.")
        return "cpu"
    if (device not in ("auto", "cpu") or runtime == "torch") and find_spec("torch") is None:
        raise DeviceError(f"{device} with PyTorch was asked for, but it is not installed; run: {install_command('gpu')}")
    if device == "auto":
        return "cuda" if _cuda_driver_present() and find_spec("torch") and _can_use_cuda() else "cpu"
    if device != "cpu" and (problem := _check_torch_device(device)):
        raise DeviceError(problem)
    return device


def load_network(bundle: Bundle) -> "DetectorNetwork":
    """The bundle's network in torch, on the CPU, from autoencoder.pth and scorer.npz. Raises BundleError."""
    import torch

    from app.network.autoencoder import ModelConfig, WeightsError, load_autoencoder
    from app.network.detector_network import DetectorNetwork, make_scorer

    architecture = bundle.card.architecture
    config = ModelConfig(**architecture.model_dump(exclude={"parameters"}))
    label = str(bundle.folder / WEIGHTS) if bundle.folder else WEIGHTS
    try:
        model = load_autoencoder(bundle.files[WEIGHTS], config, label)
        tensors = {name: torch.from_numpy(array) for name, array in bundle.scorer_arrays().items()}
        return DetectorNetwork(model, make_scorer(bundle.card.scorer, tensors))
    except WeightsError as error:
        raise BundleError(str(error)) from error
    except (KeyError, ValueError, TypeError) as error:
        raise BundleError(f"The scorer of {bundle.label} does not match its model card: {error}") from error


def _open_session(bundle: Bundle, name: str, threads: int) -> "InferenceSession":
    import onnxruntime

    onnxruntime.disable_telemetry_events()  # some builds report the use of the library to its makers
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only; the warnings are about graph optimisation
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must leave the cores to others
    # A model may name other files that hold its weights, relative to this folder (the working folder, if it is not set).
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        session = onnxruntime.InferenceSession(bundle.files[name], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common type
        raise BundleError(f"{name} of {bundle.label} cannot be loaded: {first_line(error)}") from error
    metadata = session.get_modelmeta().custom_metadata_map
    if metadata.get(WEIGHTS_SHA256) != sha256(bundle.files[WEIGHTS]):
        raise BundleError(f"{name} of {bundle.label} was not exported from its {WEIGHTS}; publish the version again.")
    return session


def _cuda_driver_present() -> bool:
    """Whether the NVIDIA driver's library can be loaded; does not import torch."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _can_use_cuda() -> bool:
    """Whether torch can use CUDA here. The log says why not."""
    problem = _check_torch_device("cuda")
    if problem:
        _warn_once(problem)
    return problem is None


@cache
def _warn_once(problem: str) -> None:
    logger.warning("the CPU is used: %s", problem)


def _check_torch_device(name: str) -> str | None:
    """A sentence that says why torch cannot use the device, or None if it can."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return f"{name!r} is not a device; use auto, cpu, cuda, cuda:N or mps."
    if device.type == "cuda":
        return _check_cuda_device(device)
    if device.type == "mps" and not torch.backends.mps.is_available():
        return "mps was asked for, but torch sees no Apple GPU; use auto or cpu."
    if device.type not in ("cpu", "cuda", "mps"):
        return f"{name!r} is not supported; use auto, cpu, cuda, cuda:N or mps."
    return None


def _check_cuda_device(device: "torch.device") -> str | None:
    """As `_check_torch_device`, for a CUDA device. torch counts devices that it cannot use."""
    import torch

    count = torch.cuda.device_count()
    if torch.version.cuda is None:
        return f"this PyTorch is built without CUDA; use cpu, or install the other: {install_command('gpu')}"
    if (device.index or 0) >= count:
        return f"{device} was asked for, but torch sees {count} CUDA devices; use auto or cpu."
    if not torch.cuda.is_available():
        return f"{device} is there, but its driver is too old for CUDA {torch.version.cuda} or not ready; use auto or cpu."
    supported = [int("".join(filter(str.isdigit, name))) for name in torch.cuda.get_arch_list()]
    major, minor = torch.cuda.get_device_capability(device)
    if supported and 10 * major + minor < min(supported):
        return f"{device} has the compute capability {major}.{minor}, too old for this PyTorch; use auto or cpu."
    return None
