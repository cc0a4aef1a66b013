import pytest
import torch

from app.network.autoencoder import Autoencoder, ModelConfig, WeightsError
from app.network.foreign_weights import load_foreign_weights


@pytest.fixture
def saved(tmp_path):
    """Save anything with torch.save; returns the path."""

    def save(content):
        torch.save(content, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return save


def state(latent_dim=2, prefix=""):
    weights = Autoencoder(ModelConfig(latent_dim=latent_dim)).state_dict()
    return {prefix + name: weight for name, weight in weights.items()}


def renamed():
    """Layers as another class names them: enc1.weight, enc1.bias, ..."""
    names = (f"{part}{layer}.{kind}" for part in ("enc", "dec") for layer in range(4) for kind in ("weight", "bias"))
    return dict(zip(names, state().values(), strict=True))


@pytest.mark.parametrize(
    "content",
    [
        state(),
        state(prefix="module."),
        state(prefix="_orig_mod.module."),
        {"epoch": 3, "state_dict": state()},
        {"model_state_dict": state(prefix="module."), "optimizer_state_dict": {}},
        {"model": state()},
        renamed(),
        state(latent_dim=3),
    ],
    ids=["bare", "DataParallel", "compiled", "Lightning", "checkpoint", "model", "other names", "3-D"],
)
def test_what_is_the_tutorials_network_is_adopted(saved, content):
    """A state_dict, wrapped, in a checkpoint, under other names or with another latent dimension: the same weights."""
    given = next((value for value in content.values() if isinstance(value, dict) and value), content)
    model = load_foreign_weights(saved(content))
    assert model.config.latent_dim == given[list(given)[6]].shape[0]
    for ours, theirs in zip(model.state_dict().values(), given.values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {"fc.weight": torch.zeros(10, 784)},
            ["Found: fc.weight [10, 784]", "encoder.0.weight [128, 784]", "decoder.6.bias [784]"],
        ),
        ({"state_dict": {"conv.weight": torch.zeros(8, 1, 3, 3)}}, ["conv.weight [8, 1, 3, 3]", "Expected"]),
        ({}, ["Found: nothing"]),
        ([1, 2], ["holds a list", "model.state_dict()"]),
        ({"epoch": 3, "loss": 0.1}, ["a dict with epoch, loss", "model.state_dict()"]),
        (torch.nn.Linear(2, 2), ["more than tensors", "a whole model"]),
        ({name: weight * float("nan") for name, weight in state().items()}, ["not finite"]),
    ],
)
def test_what_is_another_network_is_refused_with_all_that_was_found(saved, content, words):
    """The message lists the layers that were found and those that are expected."""
    with pytest.raises(WeightsError) as error:
        load_foreign_weights(saved(content))
    assert [word for word in words if word not in str(error.value)] == [], error.value


def test_a_file_that_is_none_of_torchs_is_refused(tmp_path):
    """Missing files and other files."""
    (tmp_path / "weights.pth").write_text("hello")
    with pytest.raises(WeightsError, match=r"no file of torch\.save"):
        load_foreign_weights(tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="is missing"):
        load_foreign_weights(tmp_path / "none.pth")
