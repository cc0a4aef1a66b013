import asyncio
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from fastapi.routing import APIRoute
from live import ROOT, run, serving

from app import main
from app.detection import store
from app.main import create_app
from app.serving.settings import read_settings

MODULES = """
import atexit, runpy, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
atexit.register(lambda: open({file!r}, "w").write(" ".join({{name.partition(".")[0] for name in sys.modules}})))
runpy.run_module({name!r}, run_name="__main__", alter_sys=True)
"""

WATCH = """
import re
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
import app.main
print([path for path in opened if "model_store" in path])
try:
    app.main.app
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("command", ["uvicorn", "serve"])
def test_a_server_on_a_cpu_loads_no_torch_and_nothing_of_the_offline_side(shipped_store, tmp_path, command):
    """Neither as modules nor as mapped libraries, and an idle worker stays small. `serve` adds the command line alone."""
    one_detector = tmp_path / "store"
    shutil.copytree(shipped_store / "mnist", one_detector / "mnist")
    module = {"uvicorn": ("uvicorn", "app.main:app"), "serve": ("app", "serve")}[command]
    modules = tmp_path / "modules"
    script = MODULES.format(file=str(modules), name=module[0])
    environment = {"ODDIGIT_STORE": str(one_detector), "ODDIGIT_DEVICE": "cpu", "ODDIGIT_DRAIN_S": "0"}
    started = (sys.executable, "-c", script, *module[1:])
    with serving(tmp_path / "log", command=started, ends=(0, -15), **environment) as server:
        body = (ROOT / "tests" / "samples" / "seven.png").read_bytes()
        assert httpx.post(f"{server.url}/score", content=body, headers={"content-type": "image/png"}).status_code == 200
        mapped = Path(f"/proc/{server.pid}/maps").read_text()
        memory = server.memory
    loaded = set(modules.read_text().split())
    offline = {"torch", "torchvision", "matplotlib", "sklearn", "scipy", "onnx", "ray"}
    assert {"onnxruntime", "fastapi"} <= loaded
    assert loaded & (offline if command == "serve" else offline | {"typer", "rich"}) == set()
    assert not re.search(r"libtorch|torch/lib|libcuda", mapped)
    assert memory <= 130 * 2**20


def test_importing_the_server_reads_no_environment_and_no_model():
    """Settings and store are read when the application is made, not when the module is imported."""
    done = run(sys.executable, "-c", WATCH, ODDIGIT_THREADS="nonsense")
    assert done.returncode == 0, done.stderr
    opened, refused = done.stdout.splitlines()
    assert opened == "[]"
    assert "ODDIGIT_THREADS" in refused


def test_the_module_has_an_app_and_nothing_else_by_that_way():
    """`app.main.app` is made on demand; other names are missing as they are anywhere."""
    import app.main

    with pytest.raises(AttributeError, match="nonsense"):
        _ = app.main.nonsense


@pytest.mark.parametrize(
    ("variables", "arguments", "sentence"),
    [
        ({"ODDIGIT_THREADS": "many"}, (), "ODDIGIT_THREADS"),
        ({}, ("--version", "999"), "999"),
        ({}, ("--device", "gpu"), "'gpu' is not a device"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_a_server_that_cannot_start_says_why_in_a_sentence(tiny_store, variables, arguments, sentence):
    """A bad variable, store, version or device: exit code 2 and one line, no trace."""
    done = run(sys.executable, "-m", "app", "serve", *arguments, **{"ODDIGIT_STORE": str(tiny_store), **variables})
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_a_version_that_fails_its_self_check_is_not_served(tiny_bundle, tmp_path):
    """A bundle that does not reproduce its card's scores ends the start with a sentence."""
    scores = tuple(score * 2 for score in tiny_bundle.card.self_check.scores)
    check = tiny_bundle.card.self_check.model_copy(update={"scores": scores})
    bundle = replace(tiny_bundle, card=tiny_bundle.card.model_copy(update={"self_check": check}))
    store.publish(bundle, tmp_path)
    done = run(sys.executable, "-m", "app", "serve", "--store", str(tmp_path))
    assert done.returncode == 2
    assert "self-check" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_win_over_variables(tiny_bundle, tmp_path):
    """`--version` and `--store` of the command line are served, whatever the environment says."""
    for _ in range(2):
        store.publish(tiny_bundle, tmp_path / "store")
    with serving(
        tmp_path / "log",
        *("--store", str(tmp_path / "store"), "--version", "1"),
        ODDIGIT_VERSION="2",
        ODDIGIT_STORE="/nowhere",
        ODDIGIT_DRAIN_S="0",
    ) as server:
        assert httpx.get(f"{server.url}/readyz", timeout=30).json()["model"]["version"] == 1


def test_the_variables_of_kubernetes_do_no_harm(tiny_store, tmp_path):
    """Beside a Service named oddigit every pod has them: a warning each, and the server serves."""
    kubernetes = {
        "ODDIGIT_SERVICE_HOST": "10.0.0.1",
        "ODDIGIT_SERVICE_PORT": "8000",
        "ODDIGIT_PORT": "tcp://10.0.0.1:8000",
        "ODDIGIT_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "ODDIGIT_THREADZ": "2",
    }
    with serving(tmp_path / "log", ODDIGIT_STORE=str(tiny_store), ODDIGIT_DRAIN_S="0", **kubernetes) as server:
        assert "ODDIGIT_THREADS" in server.told("ODDIGIT_THREADZ")
        assert "has no effect" in server.told("ODDIGIT_PORT ")


def test_the_framework_reads_no_body_by_itself():
    """It would read one of any size; an endpoint that takes a body has a limit of its own."""
    framework = create_app(read_settings({})).app
    included = [route.original_router for route in framework.routes if hasattr(route, "original_router")]
    routes = [route for router in (framework, *included) for route in router.routes if isinstance(route, APIRoute)]
    assert len(routes) > 30
    assert not [route.path for route in routes if route.body_field is not None]


@pytest.mark.parametrize(("lost", "words"), [("device", "the device has failed"), ("decoders", "processes cannot be started")])
def test_a_process_whose_device_has_failed_or_that_cannot_decode_ends(monkeypatch, caplog, lost, words):
    """Every further answer would be an error; a new process may be able to work."""
    engine = main._Engine(read_settings({"ODDIGIT_DECODERS": "1"}))
    detector = SimpleNamespace(is_lost=lost == "device")
    monkeypatch.setattr(engine, "models", [SimpleNamespace(inference=SimpleNamespace(detector=detector))])
    monkeypatch.setattr(engine.decoders, "is_lost", lost == "decoders")
    monkeypatch.setattr(main.os, "_exit", sys.exit)
    with pytest.raises(SystemExit, match="1"):
        asyncio.run(engine._work_each_second())
    assert words in caplog.text


def test_an_error_does_not_end_the_work_of_each_second(monkeypatch, caplog):
    """For instance no thread can be started for a while: the next second is a new chance."""
    engine, calls = main._Engine(read_settings({"ODDIGIT_DECODERS": "1"})), []

    async def fail_at_first():
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("can't start new thread")
        if len(calls) == 3:
            raise asyncio.CancelledError

    async def no_pause(seconds):
        assert seconds == 1

    monkeypatch.setattr(engine.health, "update_metrics", fail_at_first)
    monkeypatch.setattr(main.asyncio, "sleep", no_pause)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(engine._work_each_second())
    assert len(calls) == 3 and caplog.text.count("the work of each second failed") == 1
