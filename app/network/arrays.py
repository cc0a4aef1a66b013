"""One notation for two libraries: numpy's arrays on the CPU, torch's tensors while fitting and on other devices.

A tiny network on one image is nothing but calls, and a call of torch takes three times as long as one of numpy, or more once
others have had the core in between. What computes with both keeps to operations that the two spell alike; the few that they
do not are here.
"""

from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = Any  # an ndarray or a Tensor; all arrays of one computation are of one kind


def library(array: Array) -> ModuleType:
    """The one that the array belongs to."""
    return np if isinstance(array, np.ndarray) else torch


def place(array: NDArray[Any], device: torch.device) -> Array:
    """The array where `device` computes: itself on the CPU, else a tensor there."""
    return array if device.type == "cpu" else torch.from_numpy(array).to(device)


def like(example: Array, array: NDArray[Any]) -> Array:
    """The array as one of the kind, and in the place, of `example`."""
    return array if isinstance(example, np.ndarray) else torch.from_numpy(array).to(example.device)


def to_numpy(array: Array) -> NDArray[Any]:
    """An array of either kind -> numpy's."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.cpu())


def affine(values: Array, weight: Array, bias: Array) -> Array:
    """[N, I] @ [I, O] + [O]."""
    if isinstance(values, np.ndarray):
        product = values @ weight
        product += bias
        return product
    return torch.addmm(bias, values, weight)


def relu(values: Array) -> Array:
    """Zero in place of what is negative, in place."""
    return np.maximum(values, 0, out=values) if isinstance(values, np.ndarray) else values.relu_()


def sums_of_squares(values: Array) -> Array:
    """Over the last axis: [..., K] -> [...]."""
    if isinstance(values, np.ndarray):
        return np.vecdot(values, values)
    return values.square().sum(-1)


def largest(values: Array) -> Array:
    """Over the last axis, which stays: [N, K] -> [N, 1]."""
    return values.max(1, keepdims=True) if isinstance(values, np.ndarray) else values.amax(1, keepdim=True)
