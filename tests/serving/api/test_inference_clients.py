"""The clients of other model servers call this one with their own defaults, each from an environment of its own."""

import json
import os
import subprocess

import numpy as np
import pytest
from environments import installed
from live import ROOT
from strokes import npy, stroke_images

IMAGES = stroke_images(2000, seed=12)

on_demand = pytest.mark.skipif(
    "ODDIGIT_TEST_CLIENTS" not in os.environ,
    reason="installing this client takes a minute; ODDIGIT_TEST_CLIENTS=1 runs the test",
)


@pytest.fixture(scope="module")
def expected(client):
    """The scores of /score."""
    response = client.post("/score", content=npy(IMAGES), headers={"content-type": "application/x-npy"})
    return np.array([result["score"] for result in response.json()["results"]])


@pytest.fixture
def call(request, server, tmp_path, samples):
    """A function that runs a script of tests/clients with its package installed, and returns what it prints."""

    def run(package, script):
        python = installed(package, request.config.cache.mkdir(f"client-{script}"))
        np.save(tmp_path / "images.npy", IMAGES)
        command = [python, ROOT / "tests" / "clients" / f"{script}.py", f"127.0.0.1:{server.port}", tmp_path / "images.npy"]
        done = subprocess.run([*command, samples / "seven.png"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


def check_scores(found, expected, *kinds):
    """1, 256 and all images, for each kind of tensor."""
    for kind in kinds:
        for count in (1, 256, len(expected)):
            np.testing.assert_allclose(found[f"{kind} {count}"], expected[:count], rtol=1e-5)


def test_tritons_client_works_with_its_defaults(call, expected):
    """Binary tensors both ways, all outputs; metadata, configuration, index and errors."""
    found = call("tritonclient[http]", "triton_client")
    assert found["alive"] == [True] * 3
    assert (found["server"], found["index"][0], found["model"], found["config"]) == ("oddigit", "mnist", "UINT8", "TYPE_UINT8")
    assert "mnist" in found["error"]
    check_scores(found, expected, "UINT8", "FP32")


@on_demand
def test_kserves_client_works_with_its_defaults(call, expected):
    """Binary tensors, and JSON where it is asked for."""
    found = call("kserve", "kserve_client")
    assert found["alive"] == [True] * 3
    check_scores(found, expected, "UINT8", "FP32")
    np.testing.assert_allclose(found["JSON 256"], expected[:256], rtol=1e-5)


@on_demand
def test_requests_of_mlservers_codecs_are_answered(call, client, samples, expected):
    """Arrays of numpy, and an image file in base64; MLServer's types read the answers."""
    found = call("mlserver", "mlserver_client")
    assert (found["alive"], found["model"]) == ([True], "np")
    check_scores(found, expected, "UINT8", "INT64")
    uploaded = client.post("/score", files={"file": (samples / "seven.png").read_bytes()}).json()
    assert found["file"] == pytest.approx([uploaded["results"][0]["score"]], rel=1e-5)
