"""Adopts the weights of a tutorial-like autoencoder from a file that need not look exactly as the tutorial's.

Adopted are: a state_dict; a checkpoint that holds one; prefixes of wrappers (DataParallel, torch.compile); any number of latent
coordinates; layers of other names, if they are linear and their shapes are those of the architecture, in its order.
"""

import re
from pathlib import Path

from torch import Tensor

from app.network.autoencoder import Autoencoder, ModelConfig, WeightsError, check_finite, load_tensors

_HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network", "autoencoder")
_PREFIX = re.compile(r"^(?:module\.|_orig_mod\.|model\.|net\.|autoencoder\.)+")
_LAYERS = 8  # linear layers of the architecture, each with weight and bias

State = dict[str, Tensor]


def load_foreign_weights(path: Path) -> Autoencoder:
    """The network whose weights the file holds, on the CPU. Only tensors are unpickled, no code runs.

    Raises:
        WeightsError: the file cannot be read, or its layers do not fit; the message lists what was found and expected.
    """
    state = _find_state(load_tensors(path, str(path)), path)
    shapes = [tuple(tensor.shape) for tensor in state.values()]
    latent_dim = max(1, shapes[6][0]) if len(shapes) == 2 * _LAYERS and len(shapes[6]) == 2 else 2
    model = Autoencoder(ModelConfig(latent_dim=latent_dim))
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if shapes != list(expected.values()):
        raise WeightsError(
            f"{path} does not hold the weights of the tutorial's autoencoder. Found: {_listed(state)}. "
            f"Expected, with any number in place of 2: {_listed(Autoencoder().state_dict())}."
        )
    model.load_state_dict(dict(zip(expected, state.values(), strict=True)))
    check_finite(model, str(path))
    return model


def _find_state(content: object, path: Path) -> State:
    """The state_dict in the content of a file, without the prefixes of wrappers."""
    if isinstance(content, dict):
        for holder in _HOLDERS:
            if isinstance(content.get(holder), dict):
                content = content[holder]
                break
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        keys = f" with {', '.join(map(str, list(content)[:10]))}" if isinstance(content, dict) else ""
        raise WeightsError(
            f"{path} holds a {type(content).__name__}{keys}, no state_dict; save torch.save(model.state_dict(), ...)."
        )
    return {_PREFIX.sub("", str(name)): tensor.float() for name, tensor in content.items()}


def _listed(state: State) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(state.items())[:40]) or "nothing"
