"""The commands of the README in a fresh clone, and the set-up behind nginx as docs/operating.md has it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx
import numpy as np
import pytest
from live import ROOT, environment, free_port, serving
from pages import README, arguments, blocks, printed_by
from strokes import png, stroke_images

URL = "http://127.0.0.1:8000"
UNREACHABLE = re.compile(r"Could not find a version|No matching distribution|NewConnectionError|Temporary failure in name")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh clone of this repository, with nothing beside it and nothing installed."""
    folder = tmp_path_factory.mktemp("clone") / "oddigit"
    done = subprocess.run(["git", "clone", "--quiet", ROOT, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"there is no repository to clone: {done.stderr.strip()}")
    return folder


def section(title):
    """The text of a section of the README."""
    return README.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def lines(title):
    """The shell lines of a section of the README."""
    return [line for kind, block in blocks(section(title)) if kind == "sh" for line in block.splitlines()]


def own_environment(folder):
    return environment(XDG_DATA_HOME=str(folder.parent / "share"))


@contextmanager
def running(command, folder, log):
    """A command in a process group of its own, which is ended as Ctrl-C ends it."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["sh", "-c", command], cwd=folder, env=own_environment(folder), stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(60)


def printed(folder, command):
    """What a command prints, which must succeed. The user's data folder is beside the clone."""
    done = subprocess.run(command, cwd=folder, env=own_environment(folder), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_until_ready(url, process, log):
    """Wait for a server that may install itself first; skip where no package index can be reached."""
    until = time.monotonic() + 500
    while time.monotonic() < until:
        if process.poll() is not None:
            if found := UNREACHABLE.search(log.read_text()):
                pytest.skip(f"the packages cannot be installed here: {found[0]}")
            pytest.fail(log.read_text()[-3000:])
        try:
            if httpx.get(f"{url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.3)
    pytest.fail("the server did not become ready: " + log.read_text()[-3000:])


def test_the_first_section_works_in_a_fresh_clone(clone, tmp_path):
    """`make serve` installs, saying what and how much, and serves; curl, Python, JavaScript and `score` get their answers."""
    port, log = free_port(), tmp_path / "log"
    start, *others = lines("Start")
    assert start == "make serve"
    with running(f'make serve PYTHON={sys.executable} EXTRA=core ARGS="--port {port}"', clone, log) as process:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        assert "Installing the server with ONNX Runtime, 260 MB, into .venv" in log.read_text()
        assert "Collecting" in log.read_text()  # progress while it installs
        python = [clone / ".venv/bin/python", "-c"]
        ((code, output),) = printed_by(section("Start"), "python")
        assert printed(clone, [*python, code.replace(":8000", f":{port}")]) == output
        for line in others:
            if shutil.which(arguments(line)[0], path=f"{clone}:{os.environ['PATH']}"):  # curl may be missing
                assert "seven.png" in printed(clone, arguments(line.replace(":8000", f":{port}")))
    shutil.rmtree(clone / ".venv")


def test_training_one_s_own_works_in_a_fresh_clone(clone, tmp_path):
    """The three commands, with the environment of the tests; the last one serves what the first one published.

    The images are no digits: a detector of these takes half the time to train.
    """
    (clone / ".venv").symlink_to(sys.prefix)
    for name, images in (("my_images", textures(360)), ("my_things", stroke_images(20, seed=1))):
        (clone / name).mkdir()
        for index, image in enumerate(images):
            (clone / name / f"{index}.png").write_bytes(png(image))
    train, evaluate, serve = lines("Train your own")
    train = train.replace("make train", "make train -o .venv/installed-train")
    assert "look like no digits" in printed(clone, ["sh", "-c", f"{train} 2>&1"])
    printed(clone, arguments(evaluate.replace(".venv/bin/oddigit", ".venv/bin/python -m app")))
    port, log = free_port(), tmp_path / "log"
    serve = serve.replace(".venv/bin/oddigit", "exec .venv/bin/python -m app") + f" --port {port}"
    with running(serve, clone, log) as process:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        assert httpx.get(f"http://127.0.0.1:{port}/readyz").json()["model"] == {"name": "my_digits", "version": 1}
        models = httpx.get(f"http://127.0.0.1:{port}/models").json()["models"]
        assert [each["name"] for each in models] == ["my_digits", "mnist", "mnist-vae"]
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout
    assert "model_store" not in changed  # a later `git pull` meets nothing of the user's


def textures(count):
    """uint8 [count, 28, 28]: waves of any direction, with noise."""
    rng, (down, across) = np.random.default_rng(0), np.indices((28, 28))
    waves = [np.sin(down * a + across * b + c) for a, b, c in rng.uniform(0.1, 0.9, (count, 3))]
    return np.clip(128 + 80 * np.stack(waves) + rng.normal(0, 12, (count, 28, 28)), 0, 255).astype(np.uint8)


@pytest.fixture
def proxy(tmp_path):
    """nginx with the configuration of docs/operating.md, with a certificate of its own, before a server as told there."""
    for program in ("nginx", "openssl"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    page = (ROOT / "docs" / "operating.md").read_text()
    (configuration,) = (block for kind, block in blocks(page) if kind == "nginx")
    command = next(block for kind, block in blocks(page) if kind == "sh" and "ODDIGIT_ROOT_PATH" in block)
    variables = dict(word.split("=") for word in command.split() if word.startswith("ODDIGIT_"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "privkey.pem", "-out", "fullchain.pem", "-subj",
         "/CN=example.org", "-days", "2"], cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    port = free_port()
    with serving(tmp_path / "log", ODDIGIT_DRAIN_S="0", **variables) as server:
        configuration = (
            configuration.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
            .replace("listen 443", f"listen 127.0.0.1:{port}")
            .replace("/etc/ssl/oddigit", str(tmp_path))
        )
        temporary = "".join(
            f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (tmp_path / "nginx.conf").write_text(
            f"pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
            f"http {{ access_log off; {temporary}\n{configuration}\n}}"
        )
        with running(
            f"exec nginx -e {tmp_path}/error.log -c {tmp_path}/nginx.conf -g 'daemon off;'", tmp_path, tmp_path / "out"
        ):
            base = f"https://127.0.0.1:{port}/digits"
            with httpx.Client(verify=False, headers={"host": "example.org"}) as client:
                for _ in range(100):
                    try:
                        client.get(f"{base}/readyz")
                        break
                    except httpx.TransportError:
                        time.sleep(0.1)
                yield base, client


def test_the_systemd_unit_is_valid(tmp_path):
    """systemd's own check of the unit of docs/operating.md, with a program that exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    page = (ROOT / "docs" / "operating.md").read_text()
    (unit,) = (block for kind, block in blocks(page) if kind == "ini")
    (tmp_path / "oddigit.service").write_text(unit.replace("/srv/oddigit/.venv/bin/oddigit", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / "oddigit.service"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_behind_nginx_with_tls_and_a_prefix(proxy, samples):
    """The page, its files, an upload and the address of a problem, all below the prefix."""
    base, client = proxy
    page = client.get(f"{base}/")
    assert page.status_code == 200 and "Oddigit" in page.text
    assert client.get(f"{base}/page.js").status_code == 200
    answer = client.post(f"{base}/score", files={"file": ("seven.png", (samples / "seven.png").read_bytes())})
    assert answer.json()["results"][0]["is_anomaly"] is False
    problem = client.post(f"{base}/score", content=b"x", headers={"content-type": "image/png"}).json()
    assert problem["type"].startswith("/digits/problems/")
    assert client.get(base.removesuffix("/digits") + problem["type"]).status_code == 200
    assert client.get(f"{base}/openapi.json").json()["paths"]["/score"]
