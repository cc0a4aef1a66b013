"""The detector's network on a CUDA device, captured as CUDA graphs.

The kernels of a forward pass are so small that starting them one by one takes longer than running them. A CUDA graph starts
all of them, and the copies to and from the device, in one call: a batch of up to 64 images takes a sixth to a ninth of the
time. It is captured for fixed addresses and a fixed number of images, so there is one graph for each of several batch sizes. A
batch runs in the smallest one that holds it, and a batch larger than all of them runs in parts. All memory of a forward pass
is allocated while capturing, so no batch can exhaust the device later.
See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

import gc
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.network.detector_network import DetectorNetwork

SIZES = (1, 8, 16, 32, 64, 128, 256, 512, 2048)  # images

_CAPTURE_LOCK = threading.Lock()
_STREAM_LOCK = threading.Lock()  # while a network chooses its stream
_STREAMS = 32  # on a device; torch.cuda.Stream() returns them in turn, again and again

Forward = Callable[[Tensor], Sequence[Tensor]]
Floats = NDArray[np.float32]


class CudaNetwork:
    """A network on a CUDA device. Safe to call from several threads; calls run one after the other."""

    def __init__(self, network: DetectorNetwork, device: torch.device) -> None:
        """`network` is on `device`.

        Raises:
            torch.OutOfMemoryError: the device has too little free memory.
        """
        side, pool = network.autoencoder.config.image_size, torch.cuda.graph_pool_handle()  # shared: graphs never run together
        self._lock = threading.Lock()
        with torch.cuda.device(device), torch.inference_mode():
            with _STREAM_LOCK:
                self.stream = unused_stream()
                _networks.add(self)
            self._graphs = {
                with_maps: [
                    _Graph(forward, torch.zeros(size, side, side, dtype=torch.uint8), self.stream, pool) for size in SIZES
                ]
                for with_maps, forward in ((False, network.score), (True, network.forward))
            }

    def run(self, images: NDArray[np.uint8], *, with_maps: bool) -> list[Floats]:
        """uint8 [N, S, S] -> what `DetectorNetwork.score` returns; with maps, what its `forward` returns. Each [N, ...]."""
        starts = range(0, max(len(images), 1), SIZES[-1])
        parts = [self._run_part(images[start : start + SIZES[-1]], with_maps) for start in starts]
        return parts[0] if len(parts) == 1 else [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]

    def _run_part(self, images: NDArray[np.uint8], with_maps: bool) -> list[Floats]:
        graph = next(graph for graph in self._graphs[with_maps] if graph.size >= len(images))
        with self._lock:
            return graph.run(images)


_networks = WeakSet[CudaNetwork]()  # those in use


def unused_stream() -> torch.cuda.Stream:
    """A CUDA stream on which no network in use was captured; any stream if there is none.

    The workspaces of cuBLAS belong to a stream. Freeing a graph frees the workspaces of the stream on which it was captured,
    and graphs of another network on the same stream would use freed memory.
    """
    taken = [network.stream for network in _networks]
    offered = [torch.cuda.Stream() for _ in range(_STREAMS)]  # type: ignore[no-untyped-call]
    return next((stream for stream in offered if stream not in taken), offered[0])


class _Graph:
    """A captured forward pass of `size` images, with its copies to and from the device."""

    def __init__(self, forward: Forward, images: Tensor, stream: torch.cuda.Stream, pool: Any) -> None:  # noqa: ANN401
        """Capture for as many images as uint8 [size, S, S] has. `pool` is the memory that graphs share."""
        self.size = len(images)
        pinned = images.pin_memory()
        on_device = pinned.cuda()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate their workspaces in a first run, which cannot be captured
            results = [torch.empty_like(output, device="cpu").pin_memory() for output in forward(on_device)]
        self._graph = torch.cuda.CUDAGraph()
        with capture(self._graph, pool=pool, stream=stream):
            on_device.copy_(pinned, non_blocking=True)
            for result, output in zip(results, forward(on_device), strict=True):
                result.copy_(output, non_blocking=True)
        self._addressed = pinned, on_device, results  # by the graph, so they must not be freed
        self._images, self._results = pinned.numpy(), [result.numpy() for result in results]
        self._device = on_device.device

    def run(self, images: NDArray[np.uint8]) -> list[Floats]:
        """uint8 [N, S, S] with N <= size -> outputs [N, ...]. The rest of the batch is computed too, and ignored."""
        count = len(images)
        self._images[:count] = images
        self._graph.replay()
        torch.cuda.current_stream(self._device).synchronize()
        return [result[:count].copy() for result in self._results]


@contextmanager
def capture(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:  # noqa: ANN401 - of torch.cuda.graph
    """Capture what runs inside the block into `graph`.

    Other threads may use the device meanwhile: a server scores images on one version while it loads another. Captures run one
    after the other. Garbage is not collected inside, because no older graph may be freed during a capture.
    """
    with _CAPTURE_LOCK:
        enabled = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local", **options):
                yield
        finally:
            if enabled:
                gc.enable()
