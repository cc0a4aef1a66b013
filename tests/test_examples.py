"""Each file in examples/ runs as its first lines say, against a real server."""

import base64
import json
import re
import shutil
import subprocess
import sys

import pytest
from live import ROOT, environment, run

EXAMPLES = ROOT / "examples"
PNG = b"\x89PNG\r\n\x1a\n"
CLIENTS = {"Python": (sys.executable, EXAMPLES / "client.py"), "JavaScript": ("node", EXAMPLES / "client.mjs")}


@pytest.fixture
def run_example(server, samples, tmp_path):
    """Run one example about a seven and a cat in an empty folder; returns what it prints and the folder."""

    def run_one(*command, images=("seven.png", "cat.png")):
        if shutil.which(command[0]) is None:
            pytest.skip(f"{command[0]} is not installed")
        done = subprocess.run(
            [*command, *(str(samples / name) for name in images)],
            cwd=tmp_path,
            env=environment() | {"ODDIGIT_URL": server.url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, tmp_path

    return run_one


@pytest.mark.parametrize("command", CLIENTS.values(), ids=CLIENTS)
def test_a_client_prints_three_answers_for_each_image(run_example, command):
    """The verdict, the embedding and the reconstruction of a digit and of another thing."""
    done, folder = run_example(*command)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("seven.png: digit, score ")
    assert lines[3].startswith("cat.png: anomaly, score ")
    assert lines[1].startswith("  embedding: (")
    assert (folder / "seven-reconstruction.png").read_bytes().startswith(PNG)


def test_the_shell_client_prints_two_answers_and_saves_a_picture(run_example):
    """One JSON document for each of /score and /embed, and one PNG of all images."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    done, folder = run_example("sh", EXAMPLES / "client.sh")
    assert done.returncode == 0, done.stdout + done.stderr
    scores, embeddings = (json.loads(line)["results"] for line in done.stdout.splitlines() if line)
    assert [result["is_anomaly"] for result in scores] == [False, True]
    assert [len(result["embedding"]) for result in embeddings] == [2, 2]
    assert (folder / "reconstructions.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("command", CLIENTS.values(), ids=CLIENTS)
def test_a_client_repeats_the_explanation_of_a_refused_request(run_example, command):
    """The title of the problem document is in the error message, and the exit status says that it failed."""
    done, _ = run_example(*command, images=("draw.py",))
    assert done.returncode != 0
    assert re.search(r"400 The upload is not an image|415 ", done.stderr)


def test_the_notebook_prints_what_it_shows():
    """Its cells, run one after the other at the root; the outputs that it holds are those that they print."""
    cells = [cell for cell in json.loads((EXAMPLES / "in_process.ipynb").read_text())["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(line for cell in cells for output in cell["outputs"] for line in output["text"])


def test_the_samples_are_what_their_names_say(client, samples):
    """Digits in six kinds of file are normal; a cat and a landscape are anomalies."""
    files = [path for path in sorted(samples.iterdir()) if path.suffix not in ("", ".py") and path.stem != "blank"]
    results = client.post("/score", files=[("file", (path.name, path.read_bytes())) for path in files]).json()["results"]
    assert len({path.suffix for path in files}) == 6
    assert [each["name"] for each in results if each["is_anomaly"]] == ["cat.png", "landscape.jpg"]


def test_onnx_runtime_alone_gives_the_server_s_scores(client, samples, tmp_path):
    """The exported file scores a 28x28 image as the server does; the documentation shows the same lines."""
    prepared = []
    for name in ("seven.png", "cat.png"):
        answer = client.post("/reconstruct", files={"file": (samples / name).read_bytes()}).json()
        image = tmp_path / name
        image.write_bytes(base64.b64decode(answer["results"][0]["input"]))
        prepared.append(image)
    export = run(sys.executable, "-m", "app", "export", "--to", str(tmp_path / "detector.onnx"))
    assert export.returncode == 0, export.stderr

    example = EXAMPLES / "onnxruntime_only.py"
    done = run(sys.executable, str(example), str(tmp_path / "detector.onnx"), *map(str, prepared))
    assert done.returncode == 0, done.stderr
    answer = client.post("/score", files=[("file", image.read_bytes()) for image in prepared]).json()
    printed = [float(score) for score in re.findall(r"score ([\d.]+)", done.stdout)]
    assert printed == pytest.approx([result["score"] for result in answer["results"]], abs=1e-4)
    assert example.read_text().partition('"""\n\n')[2] in (ROOT / "docs" / "train-and-calibrate.md").read_text()
