"""Clients that are generated from the OpenAPI document call every operation of a running server with success."""

import importlib
import io
import json
import shutil
import subprocess
import sys

import pytest
from live import ROOT

CLIENTS = ROOT / "tests" / "clients"
IMAGE = {"name": "images", "shape": [1, 784], "datatype": "UINT8", "data": [0] * 784}


@pytest.fixture(scope="module")
def document(client, tmp_path_factory):
    """The path of the running server's OpenAPI document."""
    path = tmp_path_factory.mktemp("document") / "openapi.json"
    path.write_text(client.get("/openapi.json").text)
    return path


def operations(document):
    """Operation id -> tag."""
    items = json.loads(document.read_text())["paths"].values()
    return {op["operationId"]: op["tags"][0].replace(" ", "_") for item in items for op in item.values()}


def python_calls(package, client, sample):
    """Operation id -> arguments of the function that openapi-python-client makes of it."""
    models = importlib.import_module(f"{package}.models")
    types = importlib.import_module(f"{package}.types")

    def upload(operation):
        file = types.File(payload=io.BytesIO(sample), file_name="sample.png", mime_type="image/png")
        return {"body": getattr(models, f"{operation.capitalize()}FilesBody")(file=[file])}

    card = client.get("/model").json()
    picture = next(name for name in card["files"] if name.endswith(".png")).removeprefix("report/")
    model = {"model": card["name"]}
    version = {**model, "version": str(card["version"])}
    infer = {"body": models.InferRequest.from_dict({"inputs": [IMAGE]})}
    return {
        "score": {**upload("score"), "alpha": 0.05},
        "embed": upload("embed"),
        "reconstruct": upload("reconstruct"),
        "inspect": upload("inspect"),
        "decode": {"body": models.DecodeRequest(embedding=[[0.5, -1.0]])},
        "get_report_picture": {"picture": picture},
        "get_problem_type": {"type_": "too-large"},
        "v2_model_metadata": model,
        "v2_version_metadata": version,
        "v2_model_config": model,
        "v2_version_config": version,
        "v2_model_ready": model,
        "v2_version_ready": version,
        "v2_model_infer": {**model, **infer},
        "v2_version_infer": {**version, **infer},
    }


def test_a_generated_python_client_calls_every_operation(server, client, document, samples, tmp_path, monkeypatch):
    """Each function of the client gets status 200 and parses the response."""
    pytest.importorskip("openapi_python_client", reason="it is not installed: pip install 'oddigit[clients]'")
    config = tmp_path / "config.yml"
    config.write_text("content_type_overrides: {image/png: application/octet-stream}\npost_hooks: []\n")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--path", str(document)]
    target = tmp_path / "generated_client"
    subprocess.run([*command, "--config", config, "--output-path", target], check=True, capture_output=True, timeout=120)
    monkeypatch.syspath_prepend(tmp_path)
    package = target.name
    generated = importlib.import_module(package).AuthenticatedClient(base_url=server.url, token="unused", timeout=60)
    calls = python_calls(package, client, (samples / "seven.png").read_bytes())
    with generated:
        for operation, tag in operations(document).items():
            module = importlib.import_module(f"{package}.api.{tag}.{operation}")
            response = module.sync_detailed(client=generated, **calls.get(operation, {}))
            assert response.status_code == 200, operation
            assert response.parsed is not None, operation


def test_a_generated_typescript_client_calls_every_operation(server, document, samples, request):
    """The calls compile against the generated types, and each gets a success with a body."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = request.config.cache.mkdir("typescript-client")  # keeps node_modules for the next run
    for name in ("package.json", "calls.ts"):
        shutil.copy(CLIENTS / name, folder)
    installed = subprocess.run(["npm", "install", "--silent", "--prefer-offline"], cwd=folder, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install the generator: {installed.stderr[-200:]}")
    run = {"cwd": folder, "capture_output": True, "text": True, "timeout": 120}
    subprocess.run(["npx", "openapi-typescript", document, "-o", "schema.d.ts"], check=True, **run)
    compiled = subprocess.run(
        ["npx", "tsc", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022", "calls.ts"], **run
    )
    assert compiled.returncode == 0, compiled.stdout
    done = subprocess.run(["node", "calls.js", server.url, samples / "seven.png"], **run)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(operations(document))
