"""A training is reproducible to the bit, survives being killed, and ends in a version that loads."""

import multiprocessing
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from live import ROOT

from app.detection import store
from app.detection.conformal import CalibrationError
from app.detection.detector import DeviceError
from app.network.autoencoder import Autoencoder
from app.training.calibration import UnknownScorer, false_alarm_interval
from app.training.checkpoint import FOLDER, CheckpointError
from app.training.config import TrainConfig, TrainingError
from app.training.datasets import DataError
from app.training.progress import SilentProgress
from app.training.train import TrainingInterrupted, train, train_one_epoch


class StopAfter(SilentProgress):
    """Presses Ctrl-C in the middle of the epoch after `epochs`."""

    def __init__(self, epochs):
        self.left = epochs + 1  # the untrained network's losses are told too

    def finish_epoch(self, epoch, fit, test):
        self.left -= 1

    def advance(self, images):
        if not self.left:
            raise KeyboardInterrupt


def weights(folder):
    return torch.load(folder / store.WEIGHTS, weights_only=True)


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_published_version(short):
    """One call leads from the data set to a version that loads, with a card and a report that tell how it came about."""
    folder = train(short(epochs=3, picture_every=2))
    bundle = store.load(folder)
    report = {path.name for path in (folder / "report").iterdir()}
    assert bundle.label == "strokes/1"
    assert len(bundle.card.losses.fit) == 4 and bundle.card.losses.fit[-1] < bundle.card.losses.fit[0]
    assert bundle.card.data["fit_images"] == 240 and bundle.card.training["epochs"] == 3
    assert {"reconstructions_000.png", "reconstructions_002.png", "reconstructions_003.png"} <= report
    assert {"loss.png", "loss_list.npy", "latent.png", "latent.npz", "errors.png"} <= report
    assert np.load(folder / "report" / "loss_list.npy").shape == (3 * 8,)
    assert np.load(folder / "report" / "latent.npz")["embeddings"].shape == (60, 2)
    assert not (folder.parent / FOLDER).exists()


def test_card_tells_nothing_of_this_machine(short):
    """Neither the store's place nor the data's is in the card of a named set."""
    described = short().described()
    assert not {"root", "data_dir"} & described.keys()


def test_same_seed_same_weights(short, tmp_path):
    """A seed decides the weights, to the bit; whatever happened to torch's own generator before."""
    first = weights(train(short()))
    torch.rand(7)
    assert same(first, weights(train(short(root=tmp_path / "other"))))
    assert not same(first, weights(train(short(seed=1))))


def test_training_leaves_the_global_generator_alone(short):
    """Who trains in a program of their own keeps their random numbers."""
    before = torch.get_rng_state()
    train(short(epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_interrupted_training_resumes_to_the_same_bits(short, tmp_path):
    """After Ctrl-C in the second epoch, a resumed training ends as an uninterrupted one: weights, losses, pictures."""
    straight = train(short(root=tmp_path / "straight"))
    with pytest.raises(TrainingInterrupted, match=r"after epoch 1 of 3.*--resume"):
        train(short(), progress=StopAfter(1))
    assert not store.versions(tmp_path / "store", "strokes")
    resumed = train(short(), resume=True)
    assert same(weights(straight), weights(resumed))
    assert store.load_card(straight).losses == store.load_card(resumed).losses
    for name in ("loss_list.npy", "reconstructions_000.png"):
        assert (straight / "report" / name).read_bytes() == (resumed / "report" / name).read_bytes()


def test_killed_training_resumes_to_the_same_bits(short, strokes_file, tmp_path):
    """kill -9 in the middle of a training process, then --resume: the weights of an uninterrupted training."""
    straight = train(short(root=tmp_path / "straight", epochs=15))
    root = tmp_path / "store"
    settings = {"--data": strokes_file, "--store": root, "--epochs": 15, "--batch-size": 32, "--alpha": 0.05}
    options = [str(part) for setting in settings.items() for part in setting]
    command = [sys.executable, "-m", "app", "train", *options, "--device", "cpu", "--scorer", "mse"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 3/"):
            break
    process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert not store.versions(root, "strokes")
    assert list((root / "strokes" / FOLDER).glob("*.pth"))
    subprocess.run([*command, "--resume"], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert same(weights(straight), weights(root / "strokes" / "1"))


def test_resume_of_another_configuration_is_refused(short):
    """Resuming with other settings says which differ; nothing is trained."""
    with pytest.raises(TrainingInterrupted):
        train(short(), progress=StopAfter(1))
    with pytest.raises(CheckpointError, match=r"seed 0 \(now 5\)"):
        train(short(seed=5), resume=True)


def test_resume_without_a_checkpoint_is_refused(short):
    """There must be something to resume."""
    with pytest.raises(CheckpointError, match="no interrupted training"):
        train(short(), resume=True)


def test_damaged_checkpoint_is_refused(short, tmp_path):
    """A checkpoint that was cut off is not trained from."""
    with pytest.raises(TrainingInterrupted):
        train(short(), progress=StopAfter(1))
    checkpoint = next((tmp_path / "store" / "strokes" / FOLDER).glob("*.pth"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        train(short(), resume=True)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"data": "no/such/set"}, DataError, "There is no data set"),
        ({"alpha": 0.001}, CalibrationError, "at least 999 calibration images"),
        ({"device": "cuda:99"}, DeviceError, "CUDA"),
        ({"scorer": "guess"}, UnknownScorer, "choose one of"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_done(short, tmp_path, changes, error, words):
    """What cannot end well is refused before it begins."""
    with pytest.raises(error, match=words):
        train(short(**changes))
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1},
        {"alpha": 1.0},
        {"seed": -1},
        {"calibration_share": 0.0},
        {"name": "../escape"},
        {"name": "Über"},
    ],
)
def test_senseless_configurations(changes):
    """A value that makes no sense is refused when the configuration is made."""
    with pytest.raises(TrainingError, match=next(iter(changes))):
        replace(TrainConfig(), **changes)


def test_divergence_stops_with_a_sentence(short):
    """A loss that is no number any more ends the training, and nothing is published."""
    with pytest.raises(TrainingError, match="smaller --learning-rate"):
        train(short(learning_rate=1e30))


def test_loop_is_the_tutorials(short):
    """An epoch gives the weights that the tutorial's own lines give on the same batches."""
    images = torch.rand(96, 784, generator=torch.Generator().manual_seed(1)) * 2 - 1
    batches = torch.randperm(96, generator=torch.Generator().manual_seed(2)).split(32)
    models = [Autoencoder(), Autoencoder()]
    models[1].load_state_dict(models[0].state_dict())
    settings = {"lr": 1e-3, "weight_decay": 1e-5}
    train_one_epoch(models[0], torch.optim.Adam(models[0].parameters(), fused=True, **settings), images, batches)
    optimizer, criterion = torch.optim.Adam(models[1].parameters(), **settings), torch.nn.MSELoss()
    for batch in batches:
        loss = criterion(models[1](images[batch]), images[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_interval_of_the_false_alarm_rate():
    """The Beta law: 10,000 calibration images leave the rate at 1 % uncertain by about a sixth, 99 by much more."""
    low, high = false_alarm_interval(10_000, 0.01)
    assert (low, high) == pytest.approx((0.0084, 0.0117), abs=1e-4)
    assert false_alarm_interval(99, 0.01)[1] > 0.02


def publish_forever(source, root, started):
    bundle = store.load(source)
    started.set()
    while True:
        store.publish(bundle, root, lambda folder: (folder / "picture.png").write_bytes(bytes(200_000)))


def publish_some(source, root):
    bundle = store.load(source)
    for _ in range(5):
        store.publish(bundle, root)


def test_two_publishers_at_once(tiny_store, tmp_path):
    """Of two processes that publish at once, each gets versions of its own, and all of them load."""
    context = multiprocessing.get_context("spawn")
    arguments = (tiny_store / "mnist" / "1", tmp_path)
    processes = [context.Process(target=publish_some, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert store.versions(tmp_path, "mnist") == list(range(1, 11))
    for version in range(1, 11):
        store.load(tmp_path / "mnist" / str(version))


def test_killed_publisher_leaves_whole_versions(tiny_store, tmp_path, kills=3):
    """kill -9 at random moments of publishing: every version that is there loads, and publishing goes on."""
    context, moments = multiprocessing.get_context("spawn"), random.Random(0)
    source = tiny_store / "mnist" / "1"
    for _ in range(kills):
        started = context.Event()
        process = context.Process(target=publish_forever, args=(source, tmp_path, started))
        process.start()
        assert started.wait(60)
        time.sleep(moments.uniform(0, 0.15))
        process.kill()
        process.join()
        process.close()
    last = store.publish(store.load(source), tmp_path)
    found = store.versions(tmp_path, "mnist")
    assert found == list(range(1, int(last.name) + 1))
    for version in found:
        store.load(tmp_path / "mnist" / str(version))


def test_real_mnist_learns(data_root, tmp_path):
    """One epoch on the real MNIST brings the error from 0.93 to below 0.25, with false alarms near the rate asked for."""
    card = store.load_card(train(TrainConfig(data_dir=data_root, root=tmp_path, epochs=1, device="cpu", scorer="mse")))
    assert card.losses.fit[0] > 0.9 and card.losses.test[-1] < 0.25
    assert 0.006 <= card.metrics["normal_test"]["false_alarm_rate"]["0.01"] <= 0.015
