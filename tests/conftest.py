"""What tests share: the shipped server, a small detector made on the spot, the sample files, the data sets."""

import os
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from hypothesis import settings
from live import ROOT, SHIPPED, Server, serving
from strokes import stroke_images

from app.detection import store
from app.detection.bundle import Architecture, Bundle, Card, EpochLosses, SelfCheck, self_check_images
from app.detection.conformal import Calibration
from app.detection.detector import Detector
from app.detection.imaging.decode import normalise
from app.network.autoencoder import Autoencoder, Layers
from app.network.scoring import load_scorer

settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.load_profile("unhurried")
torch.set_num_threads(1)  # small batches, and other processes want the cores


@pytest.fixture(scope="session")
def samples():
    """The folder of sample files: digits, things that are none, a photograph, a blank page."""
    return ROOT / "tests" / "samples"


@pytest.fixture(scope="session")
def shipped_store():
    """The store that the program ships with."""
    return SHIPPED


@pytest.fixture(scope="session")
def tiny_bundle():
    """An untrained network, calibrated on 199 drawings: rates down to 0.005 can be asked of it."""
    return make_bundle()


@pytest.fixture(scope="session")
def tiny_store(tiny_bundle, tmp_path_factory):
    """A store with `tiny_bundle` as its only version, without report."""
    root = tmp_path_factory.mktemp("store")
    store.publish(tiny_bundle, root)
    return root


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The shipped detector, served as a user would serve it."""
    with serving(tmp_path_factory.mktemp("server") / "log", "--store", str(SHIPPED)) as running:
        yield running


@pytest.fixture(scope="session")
def strict_server(tiny_store, tmp_path_factory):
    """The tiny detector, served with limits so low that tests reach them, and a log for machines."""
    limits = {
        "ODDIGIT_STORE": str(tiny_store),
        "ODDIGIT_MAX_BODY_BYTES": "4096",
        "ODDIGIT_MAX_ARRAY_BYTES": "8192",
        "ODDIGIT_MAX_IMAGES": "3",
        "ODDIGIT_MAX_ARRAY_IMAGES": "5",
        "ODDIGIT_MAX_PICTURES": "2",
        "ODDIGIT_MAX_PIXELS": "10000",
        "ODDIGIT_BODY_TIMEOUT_S": "0.5",
        "ODDIGIT_LOG_FORMAT": "json",
        "ODDIGIT_DRAIN_S": "0",
    }
    with serving(tmp_path_factory.mktemp("strict") / "log", **limits) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: Server):
    """A client of the shipped server."""
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def strict_client(strict_server: Server):
    """A client of the strict server."""
    with httpx.Client(base_url=strict_server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def data_root():
    """The folder of the real data sets, in torchvision's layout."""
    root = Path(os.environ.get("ODDIGIT_DATA") or ROOT.parent / "shared" / "data")
    if not root.is_dir():
        pytest.skip(f"the real data sets are not at {root}; ODDIGIT_DATA says where they are")
    return root


@pytest.fixture(scope="session")
def strokes_file(tmp_path_factory):
    """420 drawings and their classes, in an .npz."""
    path = tmp_path_factory.mktemp("data") / "strokes.npz"
    np.savez(path, images=stroke_images(420, seed=0), labels=np.arange(420) % 10)
    return path


def make_bundle(seed: int = 0, name: str = "mnist") -> Bundle:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Autoencoder().eval()
    scorer = load_scorer("mse", {})
    scores = scorer.score(*_through(model, stroke_images(199, seed=2)))
    calibration = Calibration.from_scores(scores)
    checked = scorer.score(*_through(model, self_check_images(0, 28))).tolist()
    card = Card(
        name=name,
        version=1,
        created="2026-01-01T00:00:00+00:00",
        architecture=Architecture.of(model),
        preprocessing="28x28 grey",
        scorer="mse",
        alpha=0.01,
        threshold=calibration.threshold(0.01),
        calibration_images=calibration.n,
        training={"seed": seed},
        data={"name": "strokes"},
        libraries={},
        losses=EpochLosses(),
        metrics={},
        self_check=SelfCheck(seed=0, scores=checked),
        files={},
    )
    bundle = Bundle(model, scorer, calibration, card)
    Detector(bundle, "cpu").self_check()
    return bundle


def _through(model, images):
    flat, layers = normalise(images).reshape(len(images), -1), Layers(model, torch.device("cpu"))
    embeddings = layers.encode(flat)
    return flat, layers.decode(embeddings), embeddings
