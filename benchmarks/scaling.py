"""Large arrays and several workers: `python benchmarks/scaling.py`, two tables from one run.

Arrays: an .npy of 1,000 images again and again, server on core 0, client on core 1, against the network and its scorer alone on
core 0, in turns. Workers: one on core 0 with the load (`wrk`) on core 1, then as many as there are cores, which share them with
the load: it takes a good part of a core, so the workers' own time for a request tells more of how they get on. Questions: a
28x28 PNG, and a photograph of a digit, which costs enough to make the load's part small.
"""

import argparse
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from serve import ROOT, bodies, wrk_script

BUILD = ROOT / "build" / "scaling"
PORT = 9121
IMAGES = 1_000
CONNECTIONS = 64

BARE = """
import sys, time, numpy
from pathlib import Path
from app.detection import store
from app.detection.detector import Detector
detector = Detector(store.load(store.find(Path("model_store"), "mnist")), "cpu")
images = numpy.load(sys.argv[1])
for _ in range(20):
    detector.detect(images)
began, passes = time.perf_counter(), 0
while time.perf_counter() < began + float(sys.argv[2]):
    detector.detect(images)
    passes += 1
print(passes * len(images) / (time.perf_counter() - began))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="the medians count")
    options = parser.parse_args()
    if not shutil.which("wrk"):
        sys.exit("wrk is needed: apt-get install wrk")
    BUILD.mkdir(parents=True, exist_ok=True)
    print(arrays(options.seconds, options.rounds), end="\n\n")
    print(workers(options.seconds, options.rounds))


def arrays(seconds: float, rounds: int) -> str:
    """Images a second in each media type and bare, as a table."""
    path = BUILD / "images.npy"
    np.save(path, np.random.RandomState(0).randint(0, 256, (IMAGES, 28, 28)).astype(np.uint8))
    body = path.read_bytes()
    found: dict[str, list[float]] = {"bare": [], "application/x-npy": [], "application/json": []}
    for _ in range(rounds):
        with server(1, "0"):
            for media in list(found)[1:]:
                found[media].append(images_a_second(body, media, seconds))
        bare = ["taskset", "-c", "0", sys.executable, "-c", BARE, str(path), str(seconds)]
        found["bare"].append(float(subprocess.check_output(bare, cwd=ROOT, text=True)))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    lines = [f"| {IMAGES:,} images as .npy | images/s | of bare |", "|---|---:|---:|"]
    lines += [f"| {name} | {rate:,.0f} | {rate / medians['bare']:.0%} |" for name, rate in medians.items()]
    return "\n".join(lines)


def images_a_second(body: bytes, media: str, seconds: float) -> float:
    """Ask over one connection until the time is over, from core 1."""
    os.sched_setaffinity(0, {1})
    line = http.client.HTTPConnection("127.0.0.1", PORT)
    headers = {"content-type": "application/x-npy", "accept": media}
    for warm in (True, False):
        began, asked = time.perf_counter(), 0
        while time.perf_counter() < began + (0.5 if warm else seconds):
            line.request("POST", "/score", body, headers)
            answer = line.getresponse()
            assert answer.status == 200, answer.read()
            answer.read()
            asked += 1
    line.close()
    return asked * IMAGES / (time.perf_counter() - began)


def workers(seconds: float, rounds: int) -> str:
    """Requests a second, and the workers' own time for each, of one worker and of one a core, as a table."""
    cores = os.cpu_count() or 1
    every = f"0-{cores - 1}"
    photograph = (ROOT / "tests" / "samples" / "two.jpg").read_bytes()
    questions = {"28x28 PNG": bodies()["raw"], "photograph": ("image/jpeg", photograph)}
    lines = [f"| question | one worker | us of it | {cores} workers | us of them | times |", "|---|---:|---:|---:|---:|---:|"]
    for name, (kind, body) in questions.items():
        script = BUILD / "question.lua"
        script.write_text(wrk_script(kind, body))
        found: dict[tuple[int, str], list[tuple[float, float]]] = {(1, "1"): [], (cores, every): []}
        for _ in range(rounds):
            for (count, load), rates in found.items():
                with server(count, "0" if count == 1 else every) as pid:
                    rates.append(requests_a_second(script, load, seconds, pid))
        few, many = (np.median(rates, 0) for rates in found.values())
        row = (f"{few[0]:,.0f} req/s", f"{few[1]:.0f}", f"{many[0]:,.0f} req/s", f"{many[1]:.0f}", f"{many[0] / few[0]:.2f}")
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def requests_a_second(script: Path, core: str, seconds: float, pid: int) -> tuple[float, float]:
    """-> answers a second, and microseconds of processor time that the server spent on each."""
    command = ["taskset", "-c", core, "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script)]
    before = processor_seconds(pid)
    said = subprocess.check_output([*command, f"http://127.0.0.1:{PORT}/score"], text=True)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert rate is not None and "Non-2xx" not in said, said
    return float(rate[1]), (processor_seconds(pid) - before) / (float(rate[1]) * seconds) * 1e6


def processor_seconds(pid: int) -> float:
    """That a process and its children have used so far."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in (pid, *children)]
    return sum(int(field[11]) + int(field[12]) for field in fields) / os.sysconf("SC_CLK_TCK")


@contextmanager
def server(count: int, cores: str) -> Iterator[int]:
    """So many workers on these cores, all ready; the process id of their parent, or of the only one."""
    variables = {**os.environ, "ODDIGIT_ACCESS_LOG": "false"}
    command = ["taskset", "-c", cores, sys.executable, "-m", "app", "serve", "--port", str(PORT), "--workers", str(count)]
    process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = time.perf_counter() + 60
        while time.perf_counter() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/readyz", timeout=2):
                    break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit("The server did not start.")
        time.sleep(3)  # the first worker answers; the others are not far
        yield process.pid
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


if __name__ == "__main__":
    main()
