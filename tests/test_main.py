import sys
from dataclasses import replace

import httpx
import pytest
from live import ROOT, run, serving

from app.detection import store

IMPORT = """
import sys
import app.main
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

WATCH = """
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

THREADS = """
import asyncio
import app.main
from threadpoolctl import threadpool_info
async def start():
    application = app.main.app
    async with application.router.lifespan_context(application):
        print(*{library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"})
asyncio.run(start())
"""


def test_importing_the_server_loads_nothing_of_the_offline_side():
    """No torch, torchvision, matplotlib, typer, rich or sklearn, and no engine that is optional."""
    loaded = set(run(sys.executable, "-c", IMPORT).stdout.split())
    assert "fastapi" in loaded
    assert loaded & {"torch", "torchvision", "matplotlib", "typer", "rich", "sklearn", "scipy", "onnx", "ray"} == set()


def test_importing_the_server_reads_no_environment_and_no_model():
    """Settings and store are read when the application is made, not when the module is imported."""
    done = run(sys.executable, "-c", WATCH, ODDIGIT_THREADS="nonsense")
    assert done.returncode == 0, done.stderr
    opened, refused = done.stdout.splitlines()
    assert opened == "[]"
    assert "ODDIGIT_THREADS" in refused


@pytest.mark.parametrize("variables", [{}, {"ODDIGIT_THREADS": "2"}], ids=str)
def test_a_forward_pass_takes_no_more_threads_than_it_may(variables):
    """One unless told otherwise: on many cores, numpy would start one a core for a product of microseconds."""
    done = run(sys.executable, "-c", THREADS, OPENBLAS_NUM_THREADS="4", **variables)
    assert done.stdout.split() == [variables.get("ODDIGIT_THREADS", "1")], done.stderr


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


def test_uvicorn_can_serve_the_app_by_its_name(tiny_store, tmp_path):
    """`uvicorn app.main:app` works, with the settings from the environment."""
    command = (sys.executable, "-m", "uvicorn", "app.main:app")
    with serving(
        tmp_path / "log", command=command, ends=(0, -15), ODDIGIT_STORE=str(tiny_store), ODDIGIT_DRAIN_S="0"
    ) as server:
        body = (ROOT / "tests" / "samples" / "seven.png").read_bytes()
        answer = httpx.post(f"{server.url}/score", content=body, headers={"content-type": "image/png"}, timeout=30)
    assert answer.json()["model"] == {"name": "mnist", "version": 1}


def test_options_win_over_variables(tiny_bundle, tmp_path):
    """`--version` and `--store` of the command line are served, whatever the environment says."""
    for _ in range(2):
        store.publish(tiny_bundle, tmp_path / "store")
    with serving(
        tmp_path / "log", "--store", str(tmp_path / "store"), "--version", "1", ODDIGIT_VERSION="2", ODDIGIT_STORE="/nowhere"
    ) as server:
        assert httpx.get(f"{server.url}/readyz", timeout=30).json()["model"]["version"] == 1
