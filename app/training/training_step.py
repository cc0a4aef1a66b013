"""One step of the training. On CUDA it is captured as a CUDA graph, which makes an epoch seven times as fast.

A step has about a hundred small kernels, and starting them one by one takes longer than running them; a graph starts all of
them in one call. The arithmetic is the same. See https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from collections import Counter

import torch
from torch import Tensor
from torch.optim import Optimizer

from app.network.autoencoder import Autoencoder
from app.network.cuda_graphs import capture

_UNCAPTURED = 3  # steps of each batch size before its capture: libraries and optimizer allocate their memory in them


class TrainingStep:
    """Trains a network on one batch a call."""

    def __init__(self, model: Autoencoder, optimizer: Optimizer) -> None:
        """On CUDA the optimizer must be `capturable`, and its state must not be replaced after the first call."""
        self._model, self._optimizer = model, optimizer
        self._steps: Counter[int] = Counter()  # by batch size
        self._captured: dict[int, _CapturedStep] = {}

    def __call__(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """Update the weights by images [B, pixels] -> the loss before the update, []; `noise` as `training_loss` takes it."""
        if not images.is_cuda:
            return self.run(images, noise)
        size = len(images)
        if size not in self._captured:
            self._steps[size] += 1
            if self._steps[size] <= _UNCAPTURED:
                return self._run_on_other_stream(images, noise)
            self._captured[size] = _CapturedStep(self, images, noise)
        return self._captured[size].replay(images, noise)

    def run(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """The step itself."""
        loss = self._model.training_loss(images, noise)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return loss.detach()

    def _run_on_other_stream(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """`run`, as the steps before a capture must run."""
        stream, current = torch.cuda.Stream(images.device), torch.cuda.current_stream(images.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            loss = self.run(images, noise)
        current.wait_stream(stream)
        return loss


class _CapturedStep:
    """The graph of a step for one batch size, with its own copy of the batch."""

    def __init__(self, step: TrainingStep, images: Tensor, noise: Tensor | None) -> None:
        """Capture `step` without running it; the tensors give shapes and device."""
        self._images, self._noise = torch.empty_like(images), None if noise is None else torch.empty_like(noise)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(images.device), capture(self._graph):
            self._loss = step.run(self._images, self._noise)

    def replay(self, images: Tensor, noise: Tensor | None) -> Tensor:
        """Run the step on this batch -> the loss, []."""
        self._images.copy_(images)
        if self._noise is not None and noise is not None:
            self._noise.copy_(noise)
        self._graph.replay()
        return self._loss.clone()
