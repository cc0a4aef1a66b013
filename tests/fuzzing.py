"""Generated requests to a running server, made from its own description and checked against it."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
from live import ROOT, environment

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


def fuzz(url, folder):
    """Let schemathesis send requests to every operation of the server; `folder` is for its notes."""
    with httpx.Client(base_url=url, timeout=60) as client:
        picture = next(name for name in client.get("/model").json()["files"] if name.endswith(".png")).removeprefix("report/")
        served = client.get("/readyz").json()["model"]
    config = folder / "schemathesis.toml"
    config.write_text(CONFIG.format(picture=picture, model=served["name"], version=served["version"]))
    command = [str(Path(sys.executable).with_name("st")), "--config-file", str(config), "run", f"{url}/openapi.json"]
    done = subprocess.run(
        [*command, "--checks", "all", "--no-color"],
        cwd=folder,
        env=environment(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "tests")])),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
