"""The command `page`: which files it writes. tests/serving/page/test_static_page.py opens them in a browser."""

import json
from dataclasses import replace

import httpx
import pytest

from app.detection import store
from app.detection.bundle import DECODER_ONNX, DETECTOR_ONNX


@pytest.fixture
def runtime(tmp_path):
    """A folder with the names of the files of onnxruntime-web."""
    folder = tmp_path / "dist"
    folder.mkdir()
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm", "ort.min.js"):
        (folder / name).write_text(name)
    return folder


def test_the_answers_of_a_server_are_written_as_files(oddigit, runtime, shipped_store, server, tmp_path):
    """Card, calibration, latent plane and report are those of a server; the models are the version's own."""
    done = oddigit("page", "--to", tmp_path / "out", "--runtime", runtime, "--store", shipped_store)
    assert done.exit_code == 0, done.output
    answers, folder = tmp_path / "out" / "answers", store.find(shipped_store, "mnist")
    for path, name in (("/model", "model"), ("/model/calibration", "calibration"), ("/latent", "latent")):
        expected, written = httpx.get(server.url + path).json(), json.loads((answers / f"{name}.json").read_text())
        assert {**written, "device": ""} == {**expected, "device": ""}
    for name in (DETECTOR_ONNX, DECODER_ONNX):
        assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert (answers / "report" / "loss.png").read_bytes() == (folder / "report" / "loss.png").read_bytes()
    assert (answers / "scores.bin").stat().st_size == 4 * json.loads((answers / "calibration.json").read_text())["images"]
    assert not (tmp_path / "out" / "runtime" / "ort.min.js").exists()
    text = (tmp_path / "out" / "index.html").read_text()
    assert "oddigit-static" in text and "wasm-unsafe-eval" in text
    assert "#monitor" not in text and "API</a>" not in text


def test_a_detector_of_other_images_is_refused(oddigit, runtime, tiny_bundle, tmp_path):
    """The page prepares drawings as digits only."""
    card = tiny_bundle.card.model_copy(update={"preprocess": "none"})
    store.publish(replace(tiny_bundle, card=card), tmp_path / "store")
    done = oddigit("page", "--to", tmp_path / "out", "--runtime", runtime, "--store", tmp_path / "store")
    assert done.exit_code == 2 and "no digits" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_the_runtime_the_message_says_how_to_get_it(oddigit, runtime, tiny_store, tmp_path):
    """Nothing is written."""
    (runtime / "ort-wasm-simd-threaded.wasm").unlink()
    done = oddigit("page", "--to", tmp_path / "out", "--runtime", runtime, "--store", tiny_store)
    assert done.exit_code == 2 and "npm install onnxruntime-web" in done.stderr
    assert not (tmp_path / "out").exists()
