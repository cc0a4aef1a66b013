"""The walls between the rooms of `app/`, read off its source."""

import ast
from functools import cache, wraps
from pathlib import Path

from live import ROOT

APP = ROOT / "app"
FILES = sorted(path.relative_to(ROOT) for path in APP.rglob("*.py"))
OFFLINE = {"torchvision", "matplotlib", "sklearn", "scipy", "typer", "rich", "onnx", "ray", "sympy"}


def for_each(paths):
    """Make one test of a check of one file; it names all of `paths` that break the rule."""

    def decorate(check):
        @wraps(check)
        def test():
            broken = {}
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    broken[str(path)] = str(error)
            assert not broken

        del test.__wrapped__  # pytest would read its argument
        return test

    return decorate


@cache
def tree(path):
    return ast.parse((ROOT / path).read_text(), str(path))


def imports(path):
    """Every module that a file imports, anywhere in it, by its full name."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively; the walls are read off full names"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_any(path, *packages):
    """The modules of these packages that a file imports."""
    return [name for name in imports(path) if any(name == package or name.startswith(package + ".") for package in packages)]


def room(path):
    """`detection` of app/network/autoencoder.py; the file's name for those that stand in no room."""
    return path.parts[1]


def dotted(node):
    """`a.b.c` of an attribute or name, else nothing."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def used(path):
    """Every dotted name that a file uses."""
    return {dotted(node) for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute | ast.Name)}


@for_each(FILES)
def test_rooms_know_only_what_they_may(path):
    """Detection knows neither side; training and serving know detection, and never each other."""
    forbidden = {
        "network": ("app.detection", "app.training", "app.serving", "app.cli", "app.scaling", "app.main"),
        "detection": ("app.training", "app.serving", "app.cli", "app.scaling", "app.main"),
        "training": ("app.serving", "app.cli", "app.main"),
        "serving": ("app.training", "app.cli", "app.main"),
        "scaling": ("app.training",),
    }.get(room(path), ())
    assert imports_any(path, *forbidden) == []


@for_each(FILES)
def test_the_web_framework_stays_in_serving(path):
    """FastAPI and Starlette are imported in main.py and serving/ alone."""
    if room(path) not in ("serving", "main.py"):
        assert imports_any(path, "fastapi", "starlette", "pydantic_core", "python_multipart") == []


@for_each(FILES)
def test_the_server_needs_nothing_of_the_offline_side(path):
    """What a server imports names no library that only training, plots or the terminal need."""
    if room(path) in ("serving", "detection", "main.py"):
        assert imports_any(path, *OFFLINE) == []


@for_each(FILES)
def test_only_the_entry_points_read_the_environment(path):
    """`os.environ` and the settings are read in main.py and cli/ alone; everything else takes plain arguments."""
    if room(path) not in ("main.py", "cli"):
        names = used(path)
        assert not names & {"os.environ", "os.getenv", "os.environb", "environ", "getenv"}
        assert "read_settings" not in names


@for_each(FILES)
def test_only_the_entry_points_set_logging_up(path):
    """Handlers and levels are set in serving/logs.py, which main.py and cli/serve.py call; everyone else only logs."""
    if path != Path("app/serving/telemetry/log_setup.py"):
        assert not used(path) & {"logging.basicConfig", "logging.config.dictConfig", "logging.StreamHandler"}


@for_each(FILES)
def test_untrusted_images_are_decoded_in_one_place(path):
    """Pillow opens files in detection/imaging/decode.py alone; the modules beside it work on pixels, and drawn in training."""
    pixels = (
        "app/detection/imaging/decode.py",
        "app/detection/imaging/foreground.py",
        "app/detection/imaging/display_mode.py",
        "app/detection/imaging/preprocess.py",
    )
    drawing = (
        "app/training/reporting/plots.py",
        "app/training/synthetic/anomalies.py",
        "app/training/synthetic/damage.py",
        "app/training/synthetic/pictures.py",
        "app/training/synthetic/uploads.py",
    )
    if str(path) not in pixels + drawing:
        assert imports_any(path, "PIL") == []
    if str(path) != "app/detection/imaging/decode.py":
        assert "Image.open" not in used(path)
        assert imports_any(path, "PIL.Image.open", "cv2", "imageio", "torchvision.io") == []


@for_each(FILES)
def test_nothing_is_unpickled(path):
    """No file reads a pickle; torch loads weights only, numpy no objects."""
    assert imports_any(path, "dill", "joblib", "shelve", "marshal") == []
    assert not used(path) & {"pickle.load", "pickle.loads", "pickle.Unpickler"}
    assert set(imports_any(path, "pickle")) <= {"pickle"}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and dotted(node.func) in ("torch.load", "np.load"):
            words = {word.arg: word.value for word in node.keywords}
            safe = words.get("weights_only") if dotted(node.func) == "torch.load" else words.get("allow_pickle")
            assert isinstance(safe, ast.Constant), f"{path}:{node.lineno} does not say that it unpickles nothing"
            assert safe.value is (dotted(node.func) == "torch.load")


@for_each([path for path in FILES if "telemetry" in path.parts])
def test_telemetry_knows_neither_http_nor_images(path):
    """Telemetry gets plain numbers and arrays; it imports no web framework, and of serving only telemetry itself."""
    assert imports_any(path, "starlette", "fastapi", "uvicorn", "PIL", "app.detection.imaging") == []
    serving = imports_any(path, "app.serving")
    assert [name for name in serving if not name.startswith("app.serving.telemetry.")] == []


SERVING_LAYERS = ("telemetry", "engine", "http", "api")  # a layer imports those before it


@for_each(FILES)
def test_layers_of_serving_import_downwards(path):
    """api -> http -> engine -> telemetry; the engine imports no web framework, and http no images."""
    layer = path.parts[2] if room(path) == "serving" else ""
    if layer in SERVING_LAYERS:
        above = SERVING_LAYERS[SERVING_LAYERS.index(layer) + 1 :]
        assert imports_any(path, *(f"app.serving.{name}" for name in above)) == []
    if layer == "engine":
        assert imports_any(path, "starlette", "fastapi", "uvicorn") == []
    if layer == "http":
        assert imports_any(path, "app.detection", "PIL", "numpy") == []


@for_each(FILES)
def test_private_names_of_uvicorn_stay_in_two_files(path):
    """The protocol and the supervisor of the workers. Elsewhere only the command and the proxy middleware."""
    allowed = {"uvicorn", "uvicorn.middleware.proxy_headers.ProxyHeadersMiddleware"}
    if path == Path("app/serving/http/workers.py"):
        supervisors = ("uvicorn.supervisors.Multiprocess", "uvicorn.supervisors.multiprocess.Process")
        allowed |= {*supervisors, "uvicorn.config.STARTUP_FAILURE"}
    if path != Path("app/serving/http/protocol.py"):
        assert set(imports_any(path, "uvicorn")) <= allowed


def test_the_batcher_knows_no_torch():
    """It groups jobs of any kind; HTTP and images are none of its business."""
    assert imports_any(Path("app/serving/engine/batcher.py"), "torch", "numpy", "fastapi", "starlette", "app") == []


@for_each(FILES)
def test_names_say_what_things_are(path):
    """No file is called after what it is to its author rather than after what it does."""
    assert not {*path.parts, path.stem} & {"utils", "util", "helpers", "helper", "manager", "base", "core", "common", "misc"}


@for_each(FILES)
def test_files_stay_of_a_size_that_is_read(path):
    """Up to 300 lines a file and 60 a function."""
    assert len((ROOT / path).read_text().splitlines()) <= 300
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


@for_each(FILES)
def test_every_file_says_what_it_is(path):
    """A module begins with its docstring."""
    assert ast.get_docstring(tree(path)), path


@for_each(FILES)
def test_torch_stays_where_a_cpu_server_never_goes(path):
    """The network and training import torch; detection imports both inside the functions of runtimes.py alone."""
    if room(path) in ("network", "training"):
        return
    if path != Path("app/detection/runtimes.py"):
        assert imports_any(path, "torch", "app.network") == []
    at_import = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [alias.name for node in at_import for alias in node.names] + [getattr(node, "module", "") for node in at_import]
    assert not [name for name in names if str(name).startswith(("torch", "app.network", "onnxruntime"))]


@for_each([path for path in FILES if room(path) == "network"])
def test_the_network_knows_torch_alone(path):
    """Its modules can be read, and exported, without the rest of the program."""
    ours = [name for name in imports(path) if name.startswith("app.") and not name.startswith("app.network.")]
    assert ours == []
