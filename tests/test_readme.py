import json
import math
import re
import shlex
import shutil
import subprocess

import pytest
import typer
from live import ROOT
from prometheus_client.parser import text_string_to_metric_families
from strokes import npy, stroke_images

from app.cli.commands import cli
from app.serving.settings import PREFIX, SHIPPED_STORE, Settings

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
LINES = [line for kind, block in BLOCKS if kind == "sh" for line in block.splitlines()]
CURLS = [line for line in LINES if line.startswith("curl ")]
OWN = re.compile(r"(?:\.ci|app|benchmarks|model_store|tests)(?:/[\w.-]+)*/?")


def arguments(line):
    """A line of a shell block as a list, without its comment."""
    return shlex.split(line, comments=True)


@pytest.fixture
def desk(tmp_path, samples):
    """A folder that looks like the root to the README's commands, with an array to send."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "samples").symlink_to(samples)
    (tmp_path / "images.npy").write_bytes(npy(stroke_images(5, seed=0)))
    return tmp_path


def curl(line, server, folder):
    """What the line prints when it is sent to our server."""
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    command = [part.replace("http://127.0.0.1:8000", server.url) for part in arguments(line)]
    assert any(server.url in part for part in command)
    done = subprocess.run([*command, "--fail-with-body"], cwd=folder, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_same(shown, answer, where="answer"):
    """The same value, field by field; floats may be written with fewer digits."""
    assert type(shown) is type(answer), where
    if isinstance(shown, dict):
        assert list(shown) == list(answer), where
        for key in shown:
            check_same(shown[key], answer[key], f"{where}.{key}")
    elif isinstance(shown, list):
        assert len(shown) == len(answer), where
        for index, (one, other) in enumerate(zip(shown, answer, strict=True)):
            check_same(one, other, f"{where}[{index}]")
    elif isinstance(shown, float):
        assert math.isclose(shown, answer, rel_tol=1e-3), where
    else:
        assert shown == answer, where


def test_the_first_answer_is_what_the_first_question_gets(server, desk):
    """The JSON under the first curl line is that line's answer, and the sentence under it is true of it."""
    kinds = [kind for kind, _ in BLOCKS]
    shown = json.loads(BLOCKS[kinds.index("json")][1])
    answer = json.loads(curl(CURLS[0], server, desk))
    check_same(shown, answer)
    seven, cat = answer["results"]
    assert not seven["is_anomaly"]
    assert seven["p_value"] > 0.1
    assert cat["is_anomaly"]
    assert cat["p_value"] < 0.01


@pytest.mark.parametrize("line", CURLS, ids=lambda line: line.partition("#")[2].strip() or "first")
def test_every_question_gets_an_answer(server, desk, line):
    """Each curl line of the README works as it stands."""
    printed = curl(line, server, desk)
    if "-o" in arguments(line):
        assert (desk / "two.png").read_bytes().startswith(b"\x89PNG")
    else:
        answer = json.loads(printed)
        assert answer.get("images") or all("error" not in result for result in answer["results"])


def test_the_table_of_variables_is_the_settings(samples):
    """Every knob is listed once, in order, with the default that it has and what it does, and nothing else is."""
    rows = re.findall(rf"^\| `{PREFIX}(\w+)` \| (.*?) ?\| (.+?) \|$", TEXT, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        default = "the shipped one" if field.default == SHIPPED_STORE else field.default
        default = "" if default is None else str(default).lower() if isinstance(default, bool) else str(default)
        expected.append((name.upper(), default, field.description))
    assert rows == expected


def test_the_table_of_metrics_is_what_the_server_has(client):
    """The names of the table are those of /metrics."""
    listed = re.findall(r"^\| `(oddigit_\w+)`", TEXT, re.MULTILINE)
    found = text_string_to_metric_families(client.get("/metrics").text)
    there = {family.name + ("_total" if family.type == "counter" else "") for family in found}
    assert len(set(listed)) == len(listed)
    assert {name for name in there if name.startswith("oddigit_") and not name.endswith("_created")} == set(listed)


def test_every_metric_in_the_text_is_in_the_table():
    """A name that is mentioned anywhere is explained."""
    mentioned = set(re.findall(r"`(oddigit_\w+)`", TEXT))
    assert mentioned == set(re.findall(r"^\| `(oddigit_\w+)`", TEXT, re.MULTILINE))


def test_every_endpoint_that_is_named_is_there(client):
    """The table of questions and answers, and every path in the text, are those of the server."""
    document = client.get("/openapi.json").json()
    described = {*document["paths"], "/docs", "/openapi.json"}
    named = set(re.findall(r"`(?:GET |POST )?(/[a-z][\w/{}.]*)`", TEXT))
    assert {"/score", "/reconstruct", "/embed", "/decode", "/readyz", "/metrics"} <= named
    assert named <= described


def test_every_file_that_is_named_is_there():
    """Links, folders of the tree, samples: each path of the README exists."""
    links = re.findall(r"\]\(((?!https?:)[^)#]+)\)", TEXT)
    words = [word for line in LINES for word in arguments(line.removeprefix("#"))]
    paths = [match for word in words if OWN.fullmatch(match := word.removeprefix("file=@").removeprefix("@")) and "/" in match]
    tree = next(block for kind, block in BLOCKS if not kind)
    folder = ""
    for line in tree.splitlines():
        name = line.split()[0]
        folder = name if not line.startswith(" ") else folder
        paths.append(name if not line.startswith(" ") else folder + name)
    assert links
    assert len(paths) > 10
    missing = [path for path in {*links, *paths} if not (ROOT / path).exists()]
    assert missing == []


def test_every_target_of_make_is_there():
    """What the README asks make for, the Makefile has."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {arguments(line)[1] for line in LINES if line.startswith("make ")} | set(re.findall(r"`make (\w+)`", TEXT))
    assert {"serve", "test", "train"} <= asked <= targets


def test_every_command_and_option_is_there():
    """Each `oddigit` line of the README names a command that exists, with options that it takes."""
    commands = typer.main.get_command(cli).commands
    lines = [arguments(line)[1:] for line in LINES if line.startswith(".venv/bin/oddigit ")]
    lines += [shlex.split(line) for line in re.findall(r"`oddigit ([a-z][^`]*)`", TEXT)]
    assert {line[0] for line in lines} >= {"train", "calibrate", "evaluate", "score", "models", "serve"}
    for name, *rest in lines:
        taken = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
        assert {part for part in rest if part.startswith("--")} <= taken, name


def test_nothing_is_left_to_be_filled_in():
    """No placeholder in capitals stands where a figure or an example belongs."""
    words = re.findall(r"(?<![`_\w:/.])[A-Z]+_[A-Z_]+\b(?!`)", re.sub(r"`[^`\n]*`", "", TEXT))
    assert words == []
