"""Large arrays and several workers: `python benchmarks/scaling.py`, two tables from one run.

Arrays: an .npy of 1,000 images again and again, server on core 0, client on core 1, in turns with the network and its scorer
alone on core 0. A server reads large bodies at a limited rate, which is printed as images a second.

Workers: one on core 0 with the load (`wrk`) on core 1, then one for each core, on all cores together with the load. The load
takes a good part of a core, so the server's CPU time for a request, decoder processes included, says more than the rate. The
requests: a 28x28 PNG, and a photograph of a digit, which costs so much that the load's part is small.
"""

import argparse
import http.client
import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from common import BUILD, LOAD_CORE, PHOTO, ROOT, BenchmarkError, Server, on_core, serving, seven_png, usage, wrk

from app.serving.http import body as request_body

IMAGES = 1_000
CONNECTIONS = 64
_LISTEN = "0A"  # the state of a listening socket in /proc/net/tcp

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
    print(arrays(options.seconds, options.rounds), end="\n\n")
    print(workers(options.seconds, options.rounds))


def arrays(seconds: float, rounds: int) -> str:
    """Images a second in each media type and bare, as a table."""
    images = np.random.RandomState(0).randint(0, 256, (IMAGES, 28, 28)).astype(np.uint8)
    found: dict[str, list[float]] = {"bare": [], "application/x-npy": [], "application/json": []}
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, images)
        file.flush()
        bare = ["taskset", "-c", "0", sys.executable, "-c", BARE, file.name, str(seconds)]
        for _ in range(rounds):
            with server(1, "0") as running:
                for media in list(found)[1:]:
                    found[media].append(images_a_second(running.port, images, media, seconds))
            found["bare"].append(float(subprocess.check_output(bare, cwd=ROOT, text=True)))
    medians = {name: float(np.median(values)) for name, values in found.items()}
    lines = [f"| {IMAGES:,} images as .npy | images/s | of bare |", "|---|---:|---:|"]
    lines += [f"| {name} | {rate:,.0f} | {rate / medians['bare']:.0%} |" for name, rate in medians.items()]
    return "\n".join([*lines, "", f"A server process reads {read_limit()}."])


def read_limit() -> str:
    """The rate at which a process reads large bodies, as images of a .npy."""
    return f"about {request_body._RATE / 28**2:,.0f} images/s at most"


def images_a_second(port: int, images: np.ndarray, media: str, seconds: float) -> float:
    """Post images [N, 28, 28] as .npy over one connection until the time is over, from LOAD_CORE; `media` is asked for."""
    body = io.BytesIO()
    np.save(body, images)
    headers = {"content-type": "application/x-npy", "accept": media}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with on_core(LOAD_CORE):
        for period in (0.5, seconds):  # the first is not counted
            began, requests = time.perf_counter(), 0
            while time.perf_counter() < began + period:
                connection.request("POST", "/score", body.getvalue(), headers)
                answer = connection.getresponse()
                text = answer.read()
                if answer.status != 200:
                    raise BenchmarkError(f"An array was answered with {answer.status}: {text[:200]!r}")
                requests += 1
            taken = time.perf_counter() - began
    connection.close()
    return requests * len(images) / taken


def workers(seconds: float, rounds: int) -> str:
    """Requests a second, and the server's CPU time for each, of one worker and of one for each core, as a table."""
    cores = os.cpu_count() or 1
    every = f"0-{cores - 1}"
    requests = {"28x28 PNG": ("image/png", seven_png()), "photograph": ("image/jpeg", PHOTO.read_bytes())}
    lines = [f"| request | one worker | us of it | {cores} workers | us of them | times |", "|---|---:|---:|---:|---:|---:|"]
    for name, (kind, body) in requests.items():
        found: dict[tuple[int, str, str], list[tuple[float, float]]] = {(1, "0", str(LOAD_CORE)): [], (cores, every, every): []}
        for _ in range(rounds):
            for (count, used, load), rates in found.items():
                with server(count, used) as running:
                    rates.append(requests_a_second(running, kind, body, load, seconds))
        few, many = (np.median(rates, 0) for rates in found.values())
        row = (f"{few[0]:,.0f} req/s", f"{few[1]:,.0f}", f"{many[0]:,.0f} req/s", f"{many[1]:,.0f}", f"{many[0] / few[0]:.2f}")
        lines.append(f"| {name} | {' | '.join(row)} |")
    return "\n".join(lines)


def requests_a_second(running: Server, kind: str, body: bytes, cores: str, seconds: float) -> tuple[float, float]:
    """-> answers a second, and microseconds of CPU time that the server and its decoders spent on each."""
    before = usage(running.process.pid).cpu_s
    load = wrk(f"{running.url}/score", kind, body, connections=CONNECTIONS, seconds=seconds, cores=cores)
    return load.answers_per_s, (usage(running.process.pid).cpu_s - before) / load.answers * 1e6


@contextmanager
def server(count: int, cores: str) -> Iterator[Server]:
    """`count` workers on these cores, all ready."""
    log = BUILD / "scaling.log"
    with serving("--workers", str(count), log=log, cores=cores, ODDIGIT_ACCESS_LOG="false") as running:
        until = time.monotonic() + 60
        while listening(running.port) < count:  # a worker listens once its model is loaded
            if time.monotonic() > until:
                raise BenchmarkError(f"Not all workers are ready; see {log}.")
            time.sleep(0.05)
        yield running


def listening(port: int) -> int:
    """How many sockets listen on the port; each worker has its own."""
    sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(fields[1].endswith(f":{port:04X}") and fields[3] == _LISTEN for fields in sockets)


if __name__ == "__main__":
    main()
