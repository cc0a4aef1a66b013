"""An interrupted or killed training resumes from its checkpoint and ends with the bits of an uninterrupted one."""

import io
import signal
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from live import ROOT
from strokes import stroke_images

from app.detection import store
from app.training.checkpoint import FOLDER, CheckpointError
from app.training.interrupt import Interrupt
from app.training.progress import Progress
from app.training.train import TrainingInterrupted, train


class InterruptAfter(Progress):
    """Raises KeyboardInterrupt in the middle of the epoch after `epochs`."""

    def __init__(self, epochs):
        self.epochs = epochs
        self.finished = -1

    def finish_epoch(self, epoch, fit, test):
        self.finished = epoch

    def advance(self, images):
        if self.finished == self.epochs:
            raise KeyboardInterrupt


@pytest.fixture
def interrupted(short, tmp_path):
    """The checkpoint of a training that Ctrl-C stopped in its second epoch."""
    with pytest.raises(TrainingInterrupted, match=r"after epoch 1 of 3.*--resume"):
        train(short(), progress=InterruptAfter(1))
    assert not store.folders(tmp_path / "store", "strokes")
    return next((tmp_path / "store" / "strokes" / FOLDER).glob("*.pth"))


def assert_same_training(one, other):
    """Weights, losses and pictures are equal to the bit."""
    weights, expected = (torch.load(folder / store.WEIGHTS, weights_only=True) for folder in (one, other))
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
    assert store.load_card(one).losses == store.load_card(other).losses
    for name in ("loss_list.npy", "epochs.png"):
        assert (one / "report" / name).read_bytes() == (other / "report" / name).read_bytes()


def test_interrupted_training_resumes_to_the_same_bits(short, interrupted, trained_version):
    """After Ctrl-C in the second epoch, a resumed training ends as an uninterrupted one, and its checkpoint is removed."""
    assert_same_training(train(short(), resume=True), trained_version)
    assert not interrupted.parent.exists()


@pytest.mark.gpu
def test_interrupted_training_on_cuda_resumes_to_the_same_bits(short, tmp_path):
    """Although a resumed training captures its CUDA graphs anew."""
    whole = train(short(device="cuda", root=tmp_path / "whole"))
    with pytest.raises(TrainingInterrupted):
        train(short(device="cuda"), progress=InterruptAfter(1))
    assert_same_training(train(short(device="cuda"), resume=True), whole)


def test_killed_training_resumes_to_the_same_bits(short, strokes_file, tmp_path):
    """kill -9 in a training process, then a resumed training: the bits of an uninterrupted one."""
    root = tmp_path / "store"
    settings = {"--data": strokes_file, "--store": root, "--epochs": 20, "--batch-size": 32, "--alpha": 0.05}
    options = [str(part) for setting in settings.items() for part in setting]
    command = [sys.executable, "-m", "app", "train", *options, "--device", "cpu", "--scorer", "mse"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                break
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not store.folders(root, "strokes")
    resumed = train(short(epochs=20, picture_every=10), resume=True)
    assert_same_training(resumed, train(short(epochs=20, picture_every=10, root=tmp_path / "uninterrupted")))


def test_resume_of_another_configuration_is_refused(short, interrupted):
    """Resuming with other settings names the settings that differ; nothing is trained."""
    with pytest.raises(CheckpointError, match=r"seed 0 \(now 5\)"):
        train(short(seed=5), resume=True)


def test_resume_with_other_labels_is_refused(short, tmp_path):
    """They split the images in another way: images that were trained on would calibrate."""
    images = {"images": stroke_images(420, seed=0)}
    np.savez(tmp_path / "set.npz", **images, labels=np.arange(420) % 2)
    with pytest.raises(TrainingInterrupted):
        train(short(data=str(tmp_path / "set.npz")), progress=InterruptAfter(1))
    np.savez(tmp_path / "set.npz", **images, labels=np.arange(420) % 3)
    with pytest.raises(CheckpointError, match="images or labels"):
        train(short(data=str(tmp_path / "set.npz")), resume=True)


def test_resume_without_a_checkpoint_is_refused(short):
    """There must be something to resume."""
    with pytest.raises(CheckpointError, match="no interrupted training"):
        train(short(), resume=True)


def damages(whole):
    """Contents of a checkpoint file that are none, by name."""
    state = torch.load(io.BytesIO(whole), weights_only=True)
    early, late = bytearray(whole), bytearray(whole)
    early[200] ^= 0xFF
    late[-300] ^= 0xFF
    return {
        "empty": b"",
        "truncated": whole[:1000],
        "half": whole[: len(whole) // 2],
        "text": b"hello",
        "early-bit": bytes(early),
        "late-bit": bytes(late),
        "list": saved([1, 2]),
        "tensor": saved(torch.ones(3)),
        "nothing": saved({}),
        "config-is-text": saved({**state, "config": "x"}),
        "no-model": saved({name: value for name, value in state.items() if name != "model"}),
        "other-model": saved({**state, "model": {"encoder.0.weight": torch.ones(2, 2)}}),
        "text-for-a-model": saved({**state, "model": "x"}),
        "no-history": saved({name: value for name, value in state.items() if name != "fit"}),
        "optimizer-of-nothing": saved({**state, "optimizer": {}}),
        "shuffle-is-short": saved({**state, "shuffle": torch.ones(3, dtype=torch.uint8)}),
    }


def saved(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_a_damaged_checkpoint_is_refused_with_a_sentence(short, interrupted):
    """Whatever the file holds: a sentence that names it and says what to do."""
    for name, content in damages(interrupted.read_bytes()).items():
        interrupted.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"\.pth is damaged; remove it") as caught:
            train(short(), resume=True)
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_waits_for_a_safe_moment_unless_it_is_ignored(ignored, capfd):
    """Raised by `check`; where the shell had the program ignore it, as in the background of a script, never."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        with Interrupt(notice=b"stopping\n") as interrupt:
            signal.raise_signal(signal.SIGINT)
            with nullcontext() if ignored else pytest.raises(KeyboardInterrupt):
                interrupt.check()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capfd.readouterr().err == ("" if ignored else "stopping\n")
