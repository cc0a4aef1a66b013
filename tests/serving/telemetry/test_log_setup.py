import json
import logging
import sys

import httpx
import pytest
from live import serving
from strokes import npy, png, stroke_images

from app.serving.telemetry.log_setup import JsonFormatter


def record(message="hello %s", *arguments, **extra):
    made = logging.makeLogRecord(
        {"name": "app.x", "levelno": logging.INFO, "levelname": "INFO", "msg": message, "args": arguments}
    )
    vars(made).update(extra)
    return made


@pytest.mark.parametrize("message", ["plain", 'with "quotes"', "two\nlines", "\x00\x1b[31m", "é \u2028 七", "\udcff"])
def test_a_json_record_is_one_line_of_json(message):
    """Whatever the message holds, the line is one object with its text."""
    line = JsonFormatter().format(record("%s", message))
    assert "\n" not in line
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("info", "app.x", message)
    assert entry["time"].endswith("Z")


def test_a_json_record_of_an_error_has_the_trace():
    """The trace is in the object, and still on one line."""
    try:
        raise ZeroDivisionError("no")
    except ZeroDivisionError:
        line = JsonFormatter().format(record("failed", exc_info=sys.exc_info()))
    assert "\n" not in line
    assert "ZeroDivisionError: no" in json.loads(line)["trace"]


def test_a_servers_json_log_is_json_from_its_first_line_to_its_last(strict_server, strict_client):
    """Everything that a server says is a JSON line; a request's has its id, and nothing of what was sent."""
    headers = {"content-type": "image/png", "x-request-id": "find-me-here"}
    strict_client.post("/score", content=b"--x", headers={"content-type": "multipart/form-data; boundary=b"})
    strict_client.post("/score?alpha=0.0451", content=png(stroke_images(1, seed=0)[0]), headers=headers)
    assert "/score" in json.loads(strict_server.told("find-me-here"))["message"]
    text = strict_server.log.read_text()
    entries = [json.loads(line) for line in text.splitlines()]
    assert all(entry["level"] in ("info", "warning", "error") for entry in entries)
    assert {entry["logger"].partition(".")[0] for entry in entries} <= {"app", "oddigit", "uvicorn"}
    assert "0.0451" not in text
    assert "IHDR" not in text


def test_a_request_s_line_says_what_was_judged(strict_server, strict_client):
    """Bytes, images, anomalies and the type of the problem, for every endpoint that judges, and in every form of answer."""
    images = stroke_images(3, seed=0)
    tensor = {"name": "x", "shape": [3, 28, 28], "datatype": "UINT8", "data": images.ravel().tolist()}
    asked = {
        "score": ("/score?alpha=0.999", npy(images), "application/x-npy", "*/*"),
        "array": ("/score?alpha=0.999", npy(images), "application/x-npy", "application/x-npy"),
        "embed": ("/embed", png(images[0]), "image/png", "*/*"),
        "picture": ("/reconstruct", png(images[0]), "image/png", "image/png"),
        "infer": ("/v2/models/mnist/infer", json.dumps({"inputs": [tensor]}).encode()[:4000], "application/json", "*/*"),
        "text": ("/inspect", b"hello", "image/png", "*/*"),
        "wrong-model": ("/v2/models/cats/infer", b"{}", "application/json", "*/*"),
        "wrong-path": ("/scores", b"", "image/png", "*/*"),
    }
    found = {}
    for name, (path, body, kind, accept) in asked.items():
        headers = {"content-type": kind, "accept": accept, "x-request-id": f"judged-{name}"}
        answer = strict_client.post(path, content=body, headers=headers)
        entry = json.loads(strict_server.told(f"judged-{name}"))
        found[name] = tuple(entry[key] for key in ("bytes", "images", "anomalies", "problem"))
        assert ("oddigit-result" in answer.headers) == (found[name][1:] != (None, None, None))
    size = len(npy(images))
    assert found == {
        "score": (size, 3, 3, None),
        "array": (size, 3, 3, None),
        "embed": (len(png(images[0])), 1, None, None),
        "picture": (len(png(images[0])), 1, None, None),
        "infer": (4000, None, None, "invalid-json"),
        "text": (5, None, None, "not-an-image"),
        "wrong-model": (0, None, None, "not-found"),
        "wrong-path": (0, None, None, "not-found"),
    }


def test_plain_uvicorn_has_one_line_a_request(tiny_store, tmp_path):
    """uvicorn's own access log would be a second one."""
    command = (sys.executable, "-m", "uvicorn", "app.main:app")
    with serving(
        tmp_path / "log", command=command, ends=(0, -15), ODDIGIT_STORE=str(tiny_store), ODDIGIT_DRAIN_S="0"
    ) as server:
        httpx.get(f"{server.url}/livez", headers={"x-request-id": "only-one"})
        assert "only-one" in server.told('"GET /livez')


def test_a_servers_text_log_has_a_line_a_request(server, client):
    """The line says what was asked, how it ended and how long it took, and names the request."""
    client.get("/nowhere", headers={"x-request-id": "look-for-me"})
    line = server.told("look-for-me")
    assert '"GET /nowhere" 404' in line
    assert line.endswith("ms [look-for-me]")
