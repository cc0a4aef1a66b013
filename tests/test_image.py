"""The container image: its files are mounted read-only, and its command runs as process 1 of a namespace, as user 12345.

.ci/image builds the image, and sets IMAGE_TARGET (cpu or cuda), IMAGE_ROOT (the folder of its files) and IMAGE_CONFIG (its
description by buildah). The target `cuda` is tested on machines without a GPU too.
"""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from live import free_port

ROOT = os.environ.get("IMAGE_ROOT")
CPU = os.environ.get("IMAGE_TARGET", "cpu") == "cpu"
pytestmark = pytest.mark.skipif(
    not ROOT, reason="it needs a built image: .ci/image builds and tests one, where buildah is installed"
)

# What `docker run --read-only --user 12345` does: a namespace of processes, a read-only root, /proc and a writable /dev/shm.
ISOLATED = """
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount -t tmpfs -o size=64m tmpfs {root}/dev/shm
for folder in {volumes}; do mount --bind $folder {root}/mnt; done
mount -o remount,bind,ro {root}
exec chroot --userspec 12345:12345 {root} env -i {variables} sh -c 'cd {folder} && exec "$@"' sh {command}
"""


@pytest.fixture(scope="module")
def config():
    """The configuration of the image: user, environment, command, labels."""
    return json.loads(Path(os.environ["IMAGE_CONFIG"]).read_text())["Docker"]["config"]


@contextmanager
def container(config, *arguments, volumes="", **variables):
    """Process 1 of a container that runs the image's entry point with these arguments; killed at the end."""
    settings = [*config["Env"], *(f"{name}={value}" for name, value in variables.items())]
    script = ISOLATED.format(
        root=ROOT,
        volumes=volumes,
        variables=" ".join(settings),
        folder=config["WorkingDir"],
        command=" ".join([*config["Entrypoint"], *arguments]),
    )
    command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                for first in children(process):  # it changed its user, after which --kill-child has no effect
                    os.kill(int(first), signal.SIGKILL)
            process.kill()


def stop(process):
    """Send SIGTERM to process 1 of the namespace. Returns its exit code, the seconds that it took, and its output."""
    (first,) = children(process)
    started = time.monotonic()
    os.kill(int(first), signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    return process.returncode, time.monotonic() - started, output


@contextmanager
def served(config, **options):
    """A client of a server in a container, and its process."""
    port = free_port()
    with (
        container(config, *config["Cmd"], "--port", str(port), **options) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        started = time.monotonic()
        while not ready(client):
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < started + 60
            time.sleep(0.02)
        print(f"\nready after {time.monotonic() - started:.1f} s")
        yield client, process


def ready(client):
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def memory(process):
    """MB of all processes in the namespace of the container; pages that they share count once."""
    namespace = (Path("/proc") / str(process.pid) / "ns/pid_for_children").readlink()
    found = 0
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/pid").readlink() == namespace:
                found += int((entry / "smaps_rollup").read_text().partition("\nPss:")[2].split()[0]) // 1024
        except (OSError, IndexError):  # a process that has ended
            continue
    return found


def test_every_endpoint_answers_from_a_read_only_root_as_any_user(config, samples):
    """The page, the three questions, the description, the protocol of other servers; then SIGTERM ends it with success.

    In the image for CUDA, PyTorch answers, on the CPU where there is no GPU.
    """
    with served(config, **({} if CPU else {"ODDIGIT_RUNTIME": "torch"})) as (client, process):
        for path in ("/", "/docs", "/openapi.json", "/livez", "/metrics", "/models", "/model", "/latent", "/drift", "/v2"):
            assert client.get(path).status_code == 200, path
        for path in ("/score", "/embed", "/reconstruct"):
            for name in ("seven.png", "two.jpg"):
                assert client.post(path, files={"file": (samples / name).read_bytes()}).status_code == 200
        print(f"memory of all processes: {memory(process)} MB")
        status, seconds, output = stop(process)
        print(f"stopped after {seconds:.1f} s")
        assert status == 0, output
        assert "Traceback" not in output


@pytest.mark.parametrize("delay_s", [0.05, 0.3, 1, 2])
def test_sigterm_ends_process_1_at_any_moment(config, delay_s):
    """While the shell, Python or the server starts, and afterwards."""
    with container(config, *config["Cmd"], "--port", str(free_port())) as process:
        while not began(process):
            time.sleep(0.001)
        time.sleep(delay_s)
        status, seconds, output = stop(process)
        print(f"\nSIGTERM after {delay_s:g} s: status {status}, {seconds:.1f} s")
        assert status == 0, output


def test_sigterm_under_load_ends_process_1(config, samples):
    """While four clients send images one after the other, and some of their requests are in progress."""
    statuses, image = [], (samples / "two.jpg").read_bytes()

    def send(url):
        try:
            while True:
                statuses.append(httpx.post(f"{url}/score", files={"file": image}, timeout=30).status_code)
        except httpx.TransportError:  # the server no longer listens
            pass

    with served(config) as (client, process):
        threads = [threading.Thread(target=send, args=(client.base_url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(statuses) < 40:
            time.sleep(0.01)
        status, seconds, output = stop(process)
        for thread in threads:
            thread.join()
    print(f"\nstopped under load after {seconds:.1f} s and {len(statuses)} answers")
    assert status == 0, output
    assert set(statuses) == {200}


def test_a_command_that_is_stopped_has_no_success(config, samples, tmp_path):
    """SIGTERM ends the scoring of a folder as Ctrl-C does: what was scored of it is not all."""
    first = Path(shutil.copy(samples / "two.jpg", tmp_path / "0.jpg"))
    for number in range(1, 5000):
        (tmp_path / f"{number}.jpg").hardlink_to(first)
    tmp_path.chmod(0o755)
    with container(config, "score", "/mnt", volumes=str(tmp_path)) as process:
        while not handles_sigterm(process):
            time.sleep(0.01)
        status, _, output = stop(process)
    assert (status, output.count("Traceback")) == (130, 0), output


def handles_sigterm(process):
    """Whether process 1 of the namespace has a handler for SIGTERM."""
    for first in children(process):
        status = Path(f"/proc/{first}/status").read_text()
        if int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return Path(f"/proc/{first}/cmdline").read_text().startswith("python3")
    return False


def began(process):
    """Whether the entry point runs, and no longer what prepares the namespace."""
    return [Path(f"/proc/{first}/cmdline").read_text().split("\0")[:2] for first in children(process)] == [
        ["/bin/sh", "/srv/oddigit/entrypoint.sh"]
    ]


def children(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def test_other_commands_run_too(config, samples):
    """With the arguments of `oddigit`; a mounted folder is read."""
    with container(config, "score", "/mnt", "--format", "csv", volumes=samples) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "seven.png" in output


def test_a_mounted_store_is_served_and_watched(config, tiny_bundle, tmp_path):
    """A version that is published while the server runs goes into service."""
    from app.detection import store

    root = tmp_path / "store"
    store.publish(tiny_bundle, root)
    tmp_path.chmod(0o755)
    with served(config, volumes=root, ODDIGIT_STORE="/mnt") as (client, _):
        assert client.get("/readyz").json()["model"]["version"] == 1
        store.publish(tiny_bundle, root)
        until = time.monotonic() + 30
        while client.get("/readyz").json()["model"]["version"] != 2:
            assert time.monotonic() < until
            time.sleep(0.1)


def test_the_image_says_what_it_is_and_runs_as_no_root(config):
    """Labels, a numeric user, a health check; neither compiler, tests nor caches inside, and torch for CUDA alone."""
    assert config["User"].replace(":", "").isdigit()
    assert config["Labels"]["org.opencontainers.image.title"] == "Oddigit"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    files = Path(ROOT)
    packages = next(files.glob("opt/venv/lib/python3*/site-packages"))
    assert (packages / "torch").exists() is not CPU
    for name in ("triton", "setuptools", "pip", "pytest"):
        assert not (packages / name).exists()
    assert not [path for name in ("gcc", "cc", "g++", "make") if (path := files / "usr/bin" / name).exists()]
    assert not (files / "root/.cache").exists()
    assert not list(packages.rglob("tests"))


def test_the_sizes_of_the_layers(config):
    """Printed; what the target `cpu` adds to the base has at most 235 MB, so that 115 MB remain for Debian with Python."""
    history = json.loads(Path(os.environ["IMAGE_CONFIG"]).read_text())
    parts = {name: size(Path(ROOT) / name) for name in ("opt/venv", "srv/oddigit/app", "srv/oddigit/model_store")}
    print(
        "\n" + ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in parts.items()),
        f"layers: {len(history['Docker']['rootfs']['diff_ids'])}",
    )
    assert sum(parts.values()) < 235 or not CPU


def size(folder):
    """MB of the files of a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6
