import os
import subprocess
import sys
from pathlib import Path

import pytest
from live import ROOT, environment
from strokes import png, stroke_images

CONFIG = """
hooks = "contract"
max-failures = 20

[parameters]
"path.picture" = "{picture}"
"path.type" = "too-large"
"path.model" = "{model}"
"path.version" = "{version}"
"query.model" = "{model}"

[generation]
deterministic = true
max-examples = 25

[[operations]]
include-operation-id = "score"
# an alpha in range may still be too small for the number of calibration images, which no schema knows
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]
include-operation-id = "inspect"
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]
include-operation-id = "decode"
# the number of coordinates is that of the model
checks.positive_data_acceptance.expected-statuses = ["2xx", "422"]

[[operations]]
include-path-regex = "^/v2/models/.*/infer$"
# that shape and data agree is beyond a schema too, how many images they make, and that the body nests no more than images do
checks.positive_data_acceptance.expected-statuses = ["2xx", "422", "400", "413"]
"""


@pytest.fixture(scope="module")
def document(client):
    """The OpenAPI document of the running server."""
    return client.get("/openapi.json").json()


def test_the_server_does_what_its_description_says(server, client, tmp_path):
    """Every operation, fuzzed from the OpenAPI document with all of schemathesis's checks: good requests are accepted, bad ones
    refused, and each answer has a status, a type and a shape that the document names."""
    pytest.importorskip("schemathesis")
    picture = next(name for name in client.get("/model").json()["files"] if name.endswith(".png")).removeprefix("report/")
    config = tmp_path / "schemathesis.toml"
    served = client.get("/readyz").json()["model"]
    config.write_text(CONFIG.format(picture=picture, model=served["name"], version=served["version"]))
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run", f"{server.url}/openapi.json"]
    done = subprocess.run(
        [*command, "--checks", "all", "--no-color"],
        cwd=tmp_path,  # it leaves its notes where it runs
        env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")])),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


@pytest.mark.parametrize("parameter", ["alpha", "fdr"])
def test_the_ranges_of_rates_are_those_of_the_server(client, document, parameter):
    """What the document allows is not refused as no rate at all; it may be too small for the calibration."""
    operation = document["paths"]["/score"]["post"]
    (schema,) = [entry["schema"] for entry in operation["parameters"] if entry["name"] == parameter]
    smallest = schema.get("minimum") or 5e-324
    for value in (smallest, 1 - 1e-16):
        body = png(stroke_images(1, seed=0)[0])
        response = client.post("/score", params={parameter: value}, content=body, headers={"content-type": "image/png"})
        assert response.status_code == 200 or "calibration images" in response.json()["detail"], response.text


def test_the_document_says_how_far_out_a_point_may_lie(document):
    """/decode takes points with the coordinates of any model; the range of a coordinate is in the document."""
    point = document["components"]["schemas"]["DecodeRequest"]["properties"]["embedding"]["items"]
    assert point["minItems"] == 1
    assert point["items"]["maximum"] == -point["items"]["minimum"] == 1e6
