import json
import math
import re
import shutil
import subprocess
import sys

import pytest
import typer
from live import ROOT
from pages import CURLS, LINES, README, TEXT, arguments, blocks, printed_by
from strokes import npy, stroke_images

from app.cli.commands import cli

START = README.read_text()
OWN = re.compile(r"(?:\.ci|app|benchmarks|model_store|tests)(?:/[\w.-]+)*/?")
URL = "http://127.0.0.1:8000"


@pytest.fixture
def desk(tmp_path, samples):
    """A folder that looks like the root to the pages' commands, with an array to send."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "samples").symlink_to(samples)
    (tmp_path / "images.npy").write_bytes(npy(stroke_images(5, seed=0)))
    return tmp_path


def curl(line, server, folder):
    """What the line prints when it is sent to our server."""
    if not shutil.which("curl"):
        pytest.skip("there is no curl")
    command = [part.replace(URL, server.url) for part in arguments(line)]
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


def test_the_readme_is_short_and_does_not_boast():
    """At most 900 words, and none that promises without a limit."""
    assert len(START.split()) <= 900
    assert re.findall(r"\b(?:never|everything|whatever|always|best|any image)\b", START, re.IGNORECASE) == []


def test_the_first_answer_is_what_the_first_question_gets(server, desk):
    """The JSON under the first curl line is that line's answer, and the sentence under it is true of it."""
    kinds = [kind for kind, _ in blocks(START)]
    shown = json.loads(blocks(START)[kinds.index("json")][1])
    answer = json.loads(curl(CURLS[0], server, desk))
    check_same(shown, answer)
    seven, cat = answer["results"]
    assert not seven["is_anomaly"] and cat["is_anomaly"]
    assert f"{seven['p_value']:.0%}".replace("%", " % for the seven, ") + f"{cat['p_value']:.2%}".replace("%", " %") in START


@pytest.mark.parametrize("line", CURLS, ids=lambda line: line[:120])
def test_every_question_gets_an_answer(server, desk, line):
    """Each curl line of the pages works as it stands."""
    printed = curl(line, server, desk)
    if "-o" in arguments(line):
        assert (desk / "two.png").read_bytes().startswith(b"\x89PNG")
    else:
        answer = json.loads(printed)
        assert answer.get("images") or all("error" not in result for result in answer["results"])


@pytest.mark.parametrize(("language", "command"), [("python", [sys.executable, "-"]), ("js", ["node", "--input-type=module"])])
def test_each_client_of_the_readme_prints_what_stands_below_it(server, desk, language, command):
    """The Python and the JavaScript block, sent to our server."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    ((code, output),) = printed_by(START, language)
    code = code.replace(URL, server.url)
    done = subprocess.run(command, input=code, cwd=desk, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, output), done.stderr


def test_every_endpoint_that_is_named_is_there(client):
    """Every path in the pages is one of the server."""
    document = client.get("/openapi.json").json()
    pages = ("/", "/docs", "/openapi.json")
    described = {*document["paths"], *pages}
    named = set(re.findall(r"`(?:GET |POST )?(/[a-z][\w/{}.]*)`", TEXT)) - {"/digits"}
    assert {"/score", "/reconstruct", "/embed", "/decode", "/readyz", "/metrics"} <= named
    assert {path for path in named if not path.startswith(("/etc/", "/srv/", "/dev/"))} <= described


def test_every_file_that_is_named_is_there():
    """Samples, benchmarks, examples: each path in a command exists."""
    words = [word for line in LINES for word in arguments(line.removeprefix("#"))]
    words += re.findall(r"`(?:python )?((?:benchmarks|app|tests)/[\w./-]+)", TEXT)
    paths = [match for word in words if OWN.fullmatch(match := word.removeprefix("file=@").removeprefix("@")) and "/" in match]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_target_of_make_is_there():
    """What the pages ask make for, the Makefile has."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    asked = {arguments(line)[1] for line in LINES if line.startswith("make ")} | set(re.findall(r"`make (\w+)`", TEXT))
    assert {"serve", "test", "train", "docs"} <= asked <= targets


def test_every_command_and_option_is_there():
    """Each `oddigit` line of the pages names a command that exists, with options that it takes."""
    commands = typer.main.get_command(cli).commands
    plain = [re.sub(r"^(?:\w+=\S+ )+", "", line) for line in LINES]
    lines = [arguments(line)[1:] for line in plain if line.startswith(".venv/bin/oddigit ")]
    lines += [arguments(line) for line in re.findall(r"`oddigit ([a-z][^`]*)`", TEXT)]
    assert {line[0] for line in lines} >= {"train", "calibrate", "evaluate", "score", "models", "serve"}
    for name, *rest in lines:
        taken = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
        assert {part for part in rest if part.startswith("--")} <= taken, name


def test_nothing_is_left_to_be_filled_in():
    """No placeholder in capitals stands where a figure or an example belongs."""
    words = re.findall(r"(?<![`_\w:/.])[A-Z]+_[A-Z_]+\b(?!`)", re.sub(r"`[^`\n]*`|^```.*?^```", "", START, flags=re.M | re.S))
    assert words == []
