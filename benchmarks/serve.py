"""The server against what would be picked instead: `python benchmarks/serve.py`, one table from one run.

Each server runs on core 0 and answers one 28x28 PNG a request; `wrk` (Debian's package) loads it from core 1, with 1, 32 and
256 connections. Rivals get environments of their own under build/rivals, made on first use; torch is shared with this one.
Only ratios from one run mean anything: machines differ, and so do their neighbours.
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))

from app.detection import store

ROOT = Path(__file__).parents[1]
RIVALS = ROOT / "benchmarks" / "rivals"
BUILD = ROOT / "build" / "rivals"
WEIGHTS = store.find(ROOT / "model_store", "mnist") / "autoencoder.pth"


@dataclass(frozen=True)
class Contender:
    """How to start a server, and how to ask it."""

    name: str
    command: tuple[str, ...]  # {python} and {bin}: of its environment; {port}
    path: str
    body: str  # raw, form, base64 or v2
    port: int
    needs: str = ""  # a requirement that gets an environment of its own
    folder: Path = RIVALS


@dataclass(frozen=True)
class Load:
    """What wrk measured."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int


UVICORN = ("{python}", "-m", "uvicorn", "--port", "{port}", "--no-access-log", "--log-level", "warning")
CONTENDERS = (
    Contender("floor: uvicorn + Starlette, constant answer", (*UVICORN, "floor:app"), "/raw", "raw", 9101),
    Contender("FastAPI as in tutorials, async, raw body", (*UVICORN, "naive_fastapi:app"), "/raw", "raw", 9102),
    Contender("FastAPI as in tutorials, def, multipart", (*UVICORN, "naive_fastapi:app"), "/form", "form", 9103),
    Contender(
        "LitServe, no batching",
        ("{python}", "litserve_app.py", "{port}", "1"),
        "/predict",
        "base64",
        9104,
        "litserve==0.2.19",
    ),
    Contender(
        "LitServe, batches of 32",
        ("{python}", "litserve_app.py", "{port}", "32"),
        "/predict",
        "base64",
        9104,
        "litserve==0.2.19",
    ),
    Contender(
        "BentoML",
        ("{bin}/bentoml", "serve", "bentoml_app:Scorer", "--port", "{port}"),
        "/score",
        "base64",
        9106,
        "bentoml==1.4.39",
    ),
    Contender(
        "MLServer, batches of 32",
        ("{bin}/mlserver", "start", "."),
        "/v2/models/ae/infer",
        "v2",
        9105,
        "mlserver==1.7.1",
        RIVALS / "mlserver",
    ),
    Contender(
        "mosec, batches of 32",
        ("{python}", "mosec_app.py", "--port", "{port}", "--timeout", "5000"),
        "/inference",
        "raw",
        9107,
        "mosec==0.9.8",
    ),
    Contender("Oddigit", ("{python}", "-m", "app", "serve", "--port", "{port}"), "/score", "raw", 9108, folder=ROOT),
    Contender(
        "Oddigit, multipart",
        ("{python}", "-m", "app", "serve", "--port", "{port}"),
        "/score",
        "form",
        9108,
        folder=ROOT,
    ),
    Contender(
        "Oddigit, access log on",
        ("env", "ODDIGIT_ACCESS_LOG=true", "{python}", "-m", "app", "serve", "--port", "{port}"),
        "/score",
        "raw",
        9108,
        folder=ROOT,
    ),
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
    write_requests(BUILD)
    rows: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for contender in wanted:
            measured = measure(contender, arguments.connections, arguments.seconds)
            for key, value in measured.items():
                rows.setdefault(contender.name, {}).setdefault(key, []).append(value)
            print(contender.name, {key: round(value, 2) for key, value in measured.items()}, file=sys.stderr)
    print(table({name: {key: float(np.median(values)) for key, values in row.items()} for name, row in rows.items()}))


def measure(contender: Contender, connections: list[int], seconds: float) -> dict[str, float]:
    """Start it, load it, stop it: time to ready [s], resident memory [MiB], and for each number of connections the load."""
    measured: dict[str, float] = {}
    with running(contender) as (process, ready_s):
        measured["ready s"] = ready_s
        for count in connections:
            load = wrk(contender, count, seconds)
            measured[f"req/s {count}"], measured[f"p50 {count}"] = load.requests_per_s, load.p50_ms
            measured[f"p99 {count}"] = load.p99_ms
            if load.failed:
                print(f"{contender.name}: {load.failed} failed requests", file=sys.stderr)
        measured["MiB"] = resident_mib(process.pid)
    return measured


@contextmanager
def running(contender: Contender) -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """The server on core 0, ready; stopped afterwards with its children."""
    python = environment(contender.needs)
    words = {"python": str(python), "bin": str(python.parent), "port": str(contender.port)}
    command = ["taskset", "-c", "0", *(word.format(**words) for word in contender.command)]
    variables = {**os.environ, "AUTOENCODER": str(WEIGHTS), "PYTHONPATH": str(RIVALS), "ODDIGIT_ACCESS_LOG": "false"}
    began = time.perf_counter()
    with (BUILD / "server.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=contender.folder, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until_ready(contender, process)
        yield process, time.perf_counter() - began
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        time.sleep(0.5)


def wait_until_ready(contender: Contender, process: subprocess.Popen[bytes]) -> None:
    """Ask until it answers the very question of the benchmark with 200."""
    kind, body = bodies()[contender.body]
    request = urllib.request.Request(
        f"http://127.0.0.1:{contender.port}{contender.path}", data=body, headers={"Content-Type": kind}
    )
    for _ in range(1200):
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            if process.poll() is not None:
                sys.exit(f"{contender.name} did not start:\n{(BUILD / 'server.log').read_text()[-2000:]}")
            time.sleep(0.05)
    sys.exit(f"{contender.name} never answered:\n{(BUILD / 'server.log').read_text()[-2000:]}")


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


def wrk(contender: Contender, connections: int, seconds: float) -> Load:
    url = f"http://127.0.0.1:{contender.port}{contender.path}"
    options = ["-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", "-s", str(BUILD / f"{contender.body}.lua")]
    said = subprocess.check_output(["taskset", "-c", "1", "wrk", *options, url], text=True)
    failed = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate is not None, said
    return Load(float(rate[1]), percentile(said, 50), percentile(said, 99), int(failed[1]) if failed else 0)


def percentile(said: str, which: int) -> float:
    """Milliseconds from wrk's table of latencies."""
    found = re.search(rf"{which}%\s+([\d.]+)(us|ms|s)", said)
    assert found is not None, said
    return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000}[found[2]]


def resident_mib(group: int) -> float:
    """Memory of the server and all its children."""
    pages = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == group:
                pages += int((stat.parent / "statm").read_text().split()[1])
        except (OSError, ValueError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def bodies() -> dict[str, tuple[str, bytes]]:
    """One 28x28 grey PNG of a seven, in each contender's form: content type and body."""
    image = Image.new("L", (28, 28))
    ImageDraw.Draw(image).line([(7, 7), (20, 7), (12, 22)], fill=255, width=3)
    out = io.BytesIO()
    image.save(out, "PNG")
    data = out.getvalue()
    form = b'--X\r\nContent-Disposition: form-data; name="file"; filename="seven.png"\r\nContent-Type: image/png\r\n\r\n'
    pixels = (np.asarray(image, np.float32).reshape(-1) / 127.5 - 1).round(4).tolist()
    tensor = {"inputs": [{"name": "x", "shape": [1, 784], "datatype": "FP32", "data": pixels}]}
    return {
        "raw": ("image/png", data),
        "form": ("multipart/form-data; boundary=X", form + data + b"\r\n--X--\r\n"),
        "base64": ("application/json", json.dumps({"image": base64.b64encode(data).decode()}).encode()),
        "v2": ("application/json", json.dumps(tensor).encode()),
    }


def write_requests(folder: Path) -> None:
    """wrk scripts that post the bodies."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (kind, body) in bodies().items():
        (folder / f"{name}.lua").write_text(wrk_script(kind, body))


def wrk_script(kind: str, body: bytes) -> str:
    """Lua that makes wrk post this body."""
    escaped = "".join(f"\\{byte:03d}" for byte in body)
    return f'wrk.method = "POST"\nwrk.headers["Content-Type"] = "{kind}"\nwrk.body = "{escaped}"\n'


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
