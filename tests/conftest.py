"""What tests share: the shipped server, a small detector made on the spot, the sample files, the data sets."""

import copy
import functools
import os
import signal
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from httpx._transports import default as default_transport
from hypothesis import settings
from live import ROOT, SHIPPED, Server, serving
from onnx import numpy_helper
from strokes import stroke_images

from app.detection import store
from app.detection.bundle import Bundle
from app.detection.conformal import Calibration
from app.detection.model_card import Architecture, Card, EpochLosses, SelfCheck, self_check_images
from app.network import detector_network
from app.network.autoencoder import Autoencoder, ModelConfig
from app.network.detector_network import DetectorNetwork
from app.network.mse_scorer import MseScorer
from app.training.calibration import bundle_files
from app.training.reporting import plots
from app.training.scorer_fitting import score_images

# Each httpx client would read the certificates again, for 30 ms of CPU time; no test uses TLS.
default_transport.create_ssl_context = functools.cache(default_transport.create_ssl_context)
settings.register_profile("unhurried", deadline=None, derandomize=True)
settings.load_profile("unhurried")
signal.signal(signal.SIGINT, signal.default_int_handler)  # where a shell has the tests ignore it, their programs would too
torch.set_num_threads(1)  # small batches, and other processes want the cores


LONG_FILES = (  # those that take more than 40 s, and one whose optional tests take minutes
    "test_first_hour.py",
    "test_reload.py",
    "test_drawing.py",
    "test_train.py",
    "test_protocol.py",
    "test_models.py",
    "test_bulk.py",
    "test_states.py",
    "test_deploy.py",
    "test_checkpoint.py",
    "test_inference_clients.py",
)


def pytest_collection_modifyitems(items):
    """Skip tests marked `gpu` where torch sees no CUDA device. Long files come first, so that all processes end together."""
    order = {name: index for index, name in enumerate(LONG_FILES)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device on this machine"))


class QuickExport:
    """Exports networks with the plain scorer in 2 ms, not in 2.5 s: those of an architecture differ in their weights alone."""

    def __init__(self, export):
        self.real, self.models = export, {}

    def __call__(self, network):
        architecture = network.autoencoder.config
        if not isinstance(network.scorer, MseScorer):
            return self.real(network)
        if architecture not in self.models:
            self.models[architecture] = self.real(network)
        model, weights = copy.deepcopy(self.models[architecture]), network.state_dict()
        for tensor in model.graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name].cpu().numpy(), tensor.name))
        return model


def save_figure(real, figure, path):
    """In place of `plots.save`: of a report, only the figure that a test compares, for they take most of a short training."""
    if path.parent.name == store.REPORT and path.name != "epochs.png":
        path.write_bytes(b"")
    else:
        real(figure, path)


@pytest.fixture(scope="session", autouse=True)
def quick_publishing():
    """Publishing in the tests' own process is quick; programs that tests start draw and export everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_network, "_export", QuickExport(detector_network._export))
        patch.setattr(plots, "save", functools.partial(save_figure, plots.save))
        yield


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
    with serving(tmp_path_factory.mktemp("server") / "log", "--store", str(SHIPPED), ODDIGIT_DRAIN_S="0") as running:
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
        "ODDIGIT_BODY_TIMEOUT_S": "0.3",
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


@functools.cache
def make_bundle(seed: int = 0, name: str = "mnist", latent_dim: int = 2) -> Bundle:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = DetectorNetwork(Autoencoder(ModelConfig(latent_dim=latent_dim)), MseScorer()).eval()
    calibration = Calibration.from_scores(score_images(network, stroke_images(199, seed=2)))
    checked = score_images(network, self_check_images(0, 28)).tolist()
    card = Card(
        name=name,
        version=1,
        created="2026-01-01T00:00:00+00:00",
        architecture=Architecture(image_size=28, hidden=(128, 64, 12), latent_dim=latent_dim, parameters=222_384),
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
    return Bundle(card, calibration, files=bundle_files(network, calibration, None))
