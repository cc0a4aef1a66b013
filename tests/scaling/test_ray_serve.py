"""The server behind Ray Serve, on a cluster of two nodes: its answers, its replicas under load, and the loss of one."""

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fuzzing import fuzz
from live import ROOT, environment, free_port
from strokes import npy, png, stroke_images

CLIENTS, REPLICAS = 8, 2
GOOD, PNG = png(stroke_images(1, seed=0)[0]), {"content-type": "image/png"}
TENSOR = {"name": "x", "datatype": "UINT8", "shape": [1, 28, 28], "data": stroke_images(1, seed=5).ravel().tolist()}
# Ray's own HAProxy sends a request again whose replica ended before it answered.
HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response"}

PATIENCE = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60", "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "60"}  # on a busy machine

pytestmark = pytest.mark.skipif(
    "ODDIGIT_TEST_RAY" not in os.environ, reason="installing Ray takes minutes; ODDIGIT_TEST_RAY=1 runs this test"
)


@contextmanager
def behind_ray(python, name, replicas, **variables):
    """A client of the server behind Ray Serve, with at most so many replicas."""
    port = free_port()
    command = [python, ROOT / "tests/scaling/serve_cluster.py", str(port), name, str(replicas)]
    variables = environment(PYTHONPATH=str(ROOT), **PATIENCE, **variables)
    with subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert "ready\n" in process.stdout
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
        process.stdin.close()
        process.stdout.read()


REQUESTS = {
    "png": ("/score", {"content": GOOD, "headers": PNG}),
    "form": ("/score?alpha=0.05", {"files": [("file", GOOD), ("file", b"broken")]}),
    "array": ("/embed", {"content": npy(stroke_images(300, seed=1)), "headers": {"content-type": "application/x-npy"}}),
    "picture": ("/reconstruct", {"content": GOOD, "headers": {**PNG, "accept": "image/png"}}),
    "tensor": ("/v2/models/mnist/infer", {"json": {"inputs": [TENSOR]}}),
    "point": ("/decode", {"json": {"embedding": [[0.5, 0.5]]}}),
    "broken": ("/score", {"content": b"broken", "headers": PNG}),
    "misspelt": ("/score?alhpa=1", {"content": GOOD, "headers": PNG}),
    "missing": ("/nowhere", {"content": b""}),
}


def test_answers_are_those_of_the_ordinary_server(ray_python, client):
    """Status, type and body, for images, arrays, JSON and what is refused; numbers to four digits."""
    with behind_ray(ray_python, "answers", 1) as ray_client:
        for name, (path, request) in REQUESTS.items():
            found, expected = (outline(each.post(path, **request)) for each in (ray_client, client))
            assert found == expected, name


def outline(response):
    text = re.sub(r'"request_id": ?"[^"]+"', "", response.content.decode("latin-1"))
    text = re.sub(r"-?\d+\.\d+(e-?\d+)?", lambda number: f"{float(number[0]):.4g}", text)
    return response.status_code, response.headers["content-type"], text


def test_the_configuration_file_serves(ray_python, tmp_path):
    """deploy/ray-serve.yaml, with another port, on a cluster of one machine with two CPUs."""
    port, cluster, log, config = free_port(), free_port(), tmp_path / "log", tmp_path / "ray-serve.yaml"
    text = (ROOT / "deploy/ray-serve.yaml").read_text()
    assert text.count("port: 8000") == 1
    config.write_text(text.replace("port: 8000", f"port: {port}"))
    programs = Path(ray_python).parent
    start = [programs / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={cluster}", "--include-dashboard=false"]
    serve = [programs / "serve", "run", f"--address=127.0.0.1:{cluster}", str(config)]
    with running(start, log), running(serve, log) as process:
        wait_for(lambda: len(replicas("oddigit")) == 2 or process.poll() is not None)  # min_replicas of the file
        wait_for(lambda: is_ready(f"http://127.0.0.1:{port}") or process.poll() is not None)
        answer = httpx.post(f"http://127.0.0.1:{port}/score", content=GOOD, headers=PNG, timeout=60)
        assert answer.json()["results"][0]["is_anomaly"] is False, log.read_text()


def is_ready(url):
    try:
        return httpx.get(f"{url}/readyz", timeout=60).status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def running(command, log):
    """The program in a process, which is asked to end as Ctrl-C does; its output is appended to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=environment(PYTHONPATH=str(ROOT), **PATIENCE), stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def test_it_does_what_its_description_says(ray_python, tmp_path):
    """The contract test of the ordinary server, through Ray's HAProxy."""
    with behind_ray(ray_python, "contract", 1, **HAPROXY) as ray_client:
        fuzz(str(ray_client.base_url), tmp_path)


@pytest.mark.parametrize("variables", [HAPROXY, {}], ids=["haproxy", "default"])
def test_replicas_follow_the_load_and_one_may_be_lost(ray_python, variables):
    """Eight clients make a second replica start. The first one is killed, and another one starts. A client loses at most the
    request that was in progress: the default proxy answers 500, HAProxy may close a connection when it reloads."""
    statuses, stop = [], threading.Event()

    def ask(url):
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                try:
                    statuses.append(client.post("/score", content=GOOD, headers=PNG).status_code)
                except httpx.TransportError as error:
                    statuses.append(repr(error))

    name = f"load-{os.getpid()}"
    with behind_ray(ray_python, name, REPLICAS, **variables) as client:
        (first,) = replicas(name)
        threads = [threading.Thread(target=ask, args=(client.base_url,)) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: len(replicas(name)) == REPLICAS)
            time.sleep(5)  # of load on both
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: len(replicas(name) - {first}) == REPLICAS)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    failed = [status for status in statuses if status != 200]
    print(f"\n{len(statuses):,} requests while a replica was killed, {len(failed)} failed: {failed}")
    assert len(statuses) > CLIENTS
    assert len(failed) <= CLIENTS


def replicas(name):
    """The process ids of the replicas of an application that have started."""
    titles = {int(path.parent.name): title(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    mine = {process: found for process, found in titles.items() if found.startswith(f"ray::ServeReplica:{name}:")}
    return {process for process, found in mine.items() if "initialize" not in found}


def title(path):
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def wait_for(condition):
    until = time.monotonic() + 180
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.2)
    return found
