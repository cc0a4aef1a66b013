"""The server against what would be picked instead: `python benchmarks/serve.py`, one table from one run.

Each server runs on core 0 and answers one 28x28 PNG a request; `wrk` (Debian's package) loads it from core 1, with 1, 32 and
256 connections. MLServer, whose protocol has tensors, gets 784 decoded numbers as JSON instead of a PNG. Rivals get
environments of their own under build/rivals, made on first use; torch is shared with this one. A rival that does not start,
or that fails a request, is left out with a message on stderr. Only ratios from one run mean anything: machines differ, and so
do their neighbours.
"""

import argparse
import base64
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import FORM, ROOT, BenchmarkError, Server, form, free_port, seven, seven_png, started, usage, wrk

from app.detection import store

RIVALS = ROOT / "benchmarks" / "rivals"
BUILD = ROOT / "build" / "rivals"


@dataclass(frozen=True)
class Contender:
    """How to start a server, and how to ask it."""

    name: str
    command: tuple[str, ...]  # {python} and {bin}: of its environment; {port}
    path: str
    body: str  # raw, form, base64 or v2
    needs: str = ""  # a requirement that gets an environment of its own
    folder: Path = RIVALS


UVICORN = ("{python}", "-m", "uvicorn", "--port", "{port}", "--no-access-log", "--log-level", "warning")
LITSERVE = ("{python}", "litserve_app.py", "{port}")
BENTOML = ("{bin}/bentoml", "serve", "bentoml_app:Scorer", "--port", "{port}")
MLSERVER_PORTS = ("MLSERVER_HTTP_PORT={port}", "MLSERVER_GRPC_PORT={port_2}", "MLSERVER_METRICS_PORT={port_3}")
MLSERVER = ("env", *MLSERVER_PORTS, "{bin}/mlserver", "start", ".")
MOSEC = ("{python}", "mosec_app.py", "--port", "{port}", "--timeout", "5000")
ODDIGIT = ("{python}", "-m", "app", "serve", "--port", "{port}")
CONTENDERS = (
    Contender("floor: uvicorn + Starlette, constant answer", (*UVICORN, "floor:app"), "/raw", "raw"),
    Contender("FastAPI as in tutorials, async, raw body", (*UVICORN, "naive_fastapi:app"), "/raw", "raw"),
    Contender("FastAPI as in tutorials, def, multipart", (*UVICORN, "naive_fastapi:app"), "/form", "form"),
    Contender("LitServe, no batching", (*LITSERVE, "1"), "/predict", "base64", "litserve==0.2.19"),
    Contender("LitServe, batches of 32", (*LITSERVE, "32"), "/predict", "base64", "litserve==0.2.19"),
    Contender("BentoML", BENTOML, "/score", "base64", "bentoml==1.4.39"),
    Contender("MLServer, batches of 32", MLSERVER, "/v2/models/ae/infer", "v2", "mlserver==1.7.1", RIVALS / "mlserver"),
    Contender("mosec, no batching", ("env", "MAX_BATCH_SIZE=1", *MOSEC), "/inference", "raw", "mosec==0.9.8"),
    Contender("mosec, batches of 32", ("env", "MAX_BATCH_SIZE=32", *MOSEC), "/inference", "raw", "mosec==0.9.8"),
    Contender("Oddigit", ODDIGIT, "/score", "raw", folder=ROOT),
    Contender("Oddigit, multipart", ODDIGIT, "/score", "form", folder=ROOT),
    Contender("Oddigit, access log on", ("env", "ODDIGIT_ACCESS_LOG=true", *ODDIGIT), "/score", "raw", folder=ROOT),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of load for each figure")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--only", nargs="+", default=[], help="names, or parts of names")
    parser.add_argument("--rounds", type=int, default=1, help="repeat all; the median counts")
    arguments = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")
    wanted = [each for each in CONTENDERS if not arguments.only or any(part in each.name for part in arguments.only)]
    rows: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for contender in list(wanted):
            try:
                measured = measure(contender, arguments.connections, arguments.seconds)
            except (BenchmarkError, OSError, subprocess.CalledProcessError) as error:
                print(f"{contender.name} is left out: {error}", file=sys.stderr)
                wanted.remove(contender)
                rows.pop(contender.name, None)
                continue
            for key, value in measured.items():
                rows.setdefault(contender.name, {}).setdefault(key, []).append(value)
            print(contender.name, {key: round(value, 2) for key, value in measured.items()}, file=sys.stderr)
    if not rows:
        sys.exit("Nothing was measured.")
    print(table({name: {key: float(np.median(values)) for key, values in row.items()} for name, row in rows.items()}))


def measure(contender: Contender, connections: list[int], seconds: float) -> dict[str, float]:
    """Start it, load it, stop it: time to ready [s], memory [MiB], and for each number of connections the load."""
    measured: dict[str, float] = {}
    with running(contender) as server:
        measured["ready s"] = server.ready_s
        for count in connections:
            load = wrk(server.url + contender.path, *bodies()[contender.body], connections=count, seconds=seconds)
            measured[f"req/s {count}"], measured[f"p50 {count}"] = load.answers_per_s, load.p50_ms
            measured[f"p99 {count}"] = load.p99_ms
        measured["MiB"] = usage(server.process.pid).mib
    return measured


@contextmanager
def running(contender: Contender) -> Iterator[Server]:
    """The server on core 0, once it answers the request of the benchmark with 200; stopped afterwards."""
    python = environment(contender.needs)
    port = free_port()
    words = {"python": python, "bin": python.parent, "port": port, "port_2": free_port(), "port_3": free_port()}
    command = [word.format(**words) for word in contender.command]
    weights = store.find(ROOT / "model_store", "mnist") / "autoencoder.pth"
    variables = {"AUTOENCODER": str(weights), "PYTHONPATH": str(RIVALS), "ODDIGIT_ACCESS_LOG": "false"}
    kind, body = bodies()[contender.body]
    probe = urllib.request.Request(f"http://127.0.0.1:{port}{contender.path}", data=body, headers={"Content-Type": kind})
    log = BUILD / "server.log"
    with started(command, probe, port, log=log, cores="0", folder=contender.folder, variables=variables) as server:
        yield server


def environment(needs: str) -> Path:
    """The Python to run a contender with; one with requirements gets an environment that sees this one's torch."""
    if not needs:
        return Path(sys.executable)
    folder = BUILD / re.sub(r"\W", "-", needs)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*pip, needs, "numpy", "pillow", "setuptools<81"], check=True)
        site = subprocess.check_output([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
        (Path(site.strip()) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        (folder / "complete").touch()
    return python


def bodies() -> dict[str, tuple[str, bytes]]:
    """One 28x28 grey PNG of a seven, in each contender's form: content type and body."""
    png = seven_png()
    pixels = (np.asarray(seven(), np.float32).reshape(-1) / 127.5 - 1).round(4).tolist()
    tensor = {"inputs": [{"name": "x", "shape": [1, 784], "datatype": "FP32", "data": pixels}]}
    return {
        "raw": ("image/png", png),
        "form": (FORM, form(png)),
        "base64": ("application/json", json.dumps({"image": base64.b64encode(png).decode()}).encode()),
        "v2": ("application/json", json.dumps(tensor).encode()),
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown; the last column is Oddigit's throughput over the row's, at the middle number of connections."""
    keys = list(next(iter(rows.values())))
    rates = [key for key in keys if key.startswith("req/s")]
    middle = rates[len(rates) // 2]
    ours = rows.get("Oddigit", {}).get(middle)
    lines = [f"| server | {' | '.join(keys)} | Oddigit / it |", "|---|" + "---:|" * (len(keys) + 1)]
    for name, row in rows.items():
        cells = " | ".join(f"{row[key]:,.0f}" if row[key] >= 100 else f"{row[key]:.2f}" for key in keys)
        lines.append(f"| {name} | {cells} | {f'{ours / row[middle]:.2f}' if ours else ''} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
