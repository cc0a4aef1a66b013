"""A training is reproducible to the bit and ends in a version that loads."""

import numpy as np
import pytest
import torch
from strokes import stroke_images

from app.detection import store
from app.detection.conformal import CalibrationError
from app.detection.detector import Detector
from app.detection.runtimes import DeviceError
from app.network.autoencoder import Autoencoder
from app.training import scorer_fitting, upload_fitting
from app.training.checkpoint import FOLDER
from app.training.config import TrainConfig, TrainingError
from app.training.datasets import DataError
from app.training.train import train
from app.training.training_step import TrainingStep


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def published_weights(folder):
    return torch.load(folder / store.WEIGHTS, weights_only=True)


@pytest.fixture
def weights_after(monkeypatch):
    """Trains, and returns the weights without publishing them, which takes most of the time."""

    def weights(config):
        with monkeypatch.context() as patch:
            patch.setattr("app.training.train._publish", lambda training, *others: training.model.state_dict())
            return train(config)

    return weights


def test_published_version(trained_version):
    """One call leads from the data set to a version that loads, with a card and a report that describe the training."""
    bundle = store.load(trained_version)
    report = {path.name for path in (trained_version / "report").iterdir()}
    assert bundle.label == "strokes/1"
    assert len(bundle.card.losses.fit) == 4 and bundle.card.losses.fit[-1] < bundle.card.losses.fit[0]
    assert bundle.card.data["fit_images"] == 240 and bundle.card.training["epochs"] == 3
    assert {"reconstructions_003.png", "epochs.png", "epoch_images.png", "latent_images.png"} <= report
    assert {"loss.png", "loss_list.npy", "latent.png", "latent.npz", "errors.png", "extremes.png", "false_alarms.png"} <= report
    assert np.load(trained_version / "report" / "loss_list.npy").shape == (3 * 8,)
    assert np.load(trained_version / "report" / "latent.npz")["embeddings"].shape == (60, 2)
    assert not (trained_version.parent / FOLDER).exists()


def test_same_seed_same_weights(short, trained_version, weights_after):
    """A seed decides the weights, to the bit, and torch's own generator neither influences a training nor is changed by it."""
    torch.rand(7)
    before = torch.get_rng_state()
    weights = published_weights(train(short()))
    assert torch.equal(before, torch.get_rng_state())
    assert same_weights(weights, published_weights(trained_version))
    assert not same_weights(weights, weights_after(short(seed=1)))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": "no/such/set"}, DataError, "There is no data set"),
        ({"alpha": 0.001}, CalibrationError, "at least 999 calibration images"),
        ({"device": "cuda:99"}, DeviceError, "CUDA"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_done(short, tmp_path, changes, error, words):
    """A training that cannot succeed is refused before it begins."""
    with pytest.raises(error, match=words):
        train(short(**changes))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("variational", [False, True])
def test_a_network_of_more_dimensions_is_published_like_the_plain_one(short, variational, monkeypatch):
    """Embeddings of five numbers are scored, exported and drawn; the variational network comes back as one."""
    for name, value in (("UPLOADS", 40), ("MIN_STEPS", 10), ("PICTURES", 20), ("PICTURE_STEPS", 20)):
        monkeypatch.setattr(upload_fitting, name, value)  # how well they are fitted is not what is tested
    monkeypatch.setattr(scorer_fitting, "MIN_STEPS", 10)
    monkeypatch.setattr(scorer_fitting, "IMAGES_PER_STEP", 24)
    monkeypatch.setattr(scorer_fitting, "BATCH", 128)
    folder = train(short(variational=variational, latent_dim=5, scorer="residual"))
    detector = Detector(store.load(folder), "cpu", "onnx")
    detector.self_check()
    images = stroke_images(7, seed=5)
    detections = detector.detect(images, reconstructions=True)
    assert detections.embeddings.shape == (7, 5)
    np.testing.assert_allclose(detector.decode(detections.embeddings), detections.reconstructions, atol=1e-5)
    assert (folder / "report" / "latent.png").exists() and (folder / "report" / "uploads.png").exists()
    assert ("log_variance.weight" in torch.load(folder / store.WEIGHTS, weights_only=True)) == variational
    torch_scores = Detector(store.load(folder), "cpu", "torch").detect(images).scores
    np.testing.assert_allclose(torch_scores, detections.scores, rtol=1e-3)


def test_a_variational_training_is_reproducible(short, weights_after):
    """The drawn embeddings come from the seed too."""
    assert same_weights(weights_after(short(variational=True)), weights_after(short(variational=True)))


def test_divergence_stops_with_a_sentence(short, tmp_path):
    """A loss that is no longer a number ends the training, and nothing is published."""
    with pytest.raises(TrainingError, match="smaller --learning-rate"):
        train(short(learning_rate=1e30))
    assert not store.folders(tmp_path / "store", "strokes")


def test_loop_is_the_tutorials():
    """An epoch gives the weights that the tutorial's own lines give on the same batches."""
    images = torch.rand(96, 784, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batches = torch.randperm(96, generator=torch.Generator().manual_seed(2)).split(32)
    models = [Autoencoder(), Autoencoder()]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"lr": 1e-3, "weight_decay": 1e-5}
    step = TrainingStep(models[0], torch.optim.Adam(models[0].parameters(), fused=True, **settings))
    for batch in batches:
        step(images[batch], None)
    optimizer, criterion = torch.optim.Adam(models[1].parameters(), **settings), torch.nn.MSELoss()
    for batch in batches:
        loss = criterion(models[1](images[batch]), images[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_real_mnist_learns(data_root, tmp_path):
    """One epoch on the real MNIST brings the error from 0.93 to below 0.25, with false alarms near the rate asked for."""
    card = store.load_card(train(TrainConfig(data_dir=data_root, root=tmp_path, epochs=1, device="cpu", scorer="mse")))
    assert card.losses.fit[0] > 0.9 and card.losses.test[-1] < 0.25
    assert 0.006 <= card.metrics["normal_test"]["false_alarm_rate"]["0.01"] <= 0.015


@pytest.mark.gpu
@pytest.mark.parametrize("variational", [False, True])
def test_a_training_on_cuda_is_reproducible_and_learns_as_on_the_cpu(short, variational):
    """The same bits twice, although most steps are replayed from CUDA graphs; losses as on the CPU."""
    cuda = [store.load_card(train(short(device="cuda", variational=variational))) for _ in range(2)]
    cpu = store.load_card(train(short(variational=variational)))
    assert cuda[0].files["autoencoder.pth"] == cuda[1].files["autoencoder.pth"]
    assert cuda[0].losses == cuda[1].losses
    np.testing.assert_allclose(cuda[0].losses.fit, cpu.losses.fit, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("sizes", [[32] * 8, [32, 32, 32, 8] * 5], ids=["equal batches", "a smaller last batch"])
def test_captured_steps_are_the_steps(sizes):
    """Weights after steps that were captured equal those after the tutorial's own lines."""
    images = (torch.rand(sum(sizes), 784, generator=torch.Generator().manual_seed(1)) * 2 - 1).cuda()
    models = [Autoencoder().cuda(), Autoencoder().cuda()]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"lr": 1e-3, "weight_decay": 1e-5}
    step = TrainingStep(models[0], torch.optim.Adam(models[0].parameters(), fused=True, capturable=True, **settings))
    optimizer = torch.optim.Adam(models[1].parameters(), **settings)
    for batch in images.split(sizes):
        loss = torch.nn.functional.mse_loss(models[1](batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(step(batch), loss.detach(), rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
