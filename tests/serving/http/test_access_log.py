import asyncio
import io
import json
import re

from app.serving.http.access_log import AccessLog, LoggedRequest

REQUEST = ("10.1.2.3", "GET", "/score", 200, 0.0123, "id-1", None)


def logged(*requests, as_json=False):
    """What is written for these requests once the event loop has had time."""
    stream = io.StringIO()

    async def log():
        access_log = AccessLog(as_json=as_json, stream=stream)
        for request in requests:
            access_log.write(LoggedRequest(*request))
        assert stream.getvalue() == ""
        await asyncio.sleep(0.15)

    asyncio.run(log())
    return stream.getvalue().splitlines()


def test_lines_are_written_together_within_a_moment():
    """Each has the time, the client's address, method, path, status, duration and request id."""
    lines = logged(REQUEST, REQUEST)
    assert len(lines) == 2
    assert re.fullmatch(r'\d\d:\d\d:\d\d INFO    10\.1\.2\.3 "GET /score" 200 12\.3 ms \[id-1\]', lines[0])


def test_a_line_names_the_key():
    """The name of the API key, where there was one."""
    (line,) = logged((*REQUEST[:-1], "reader"))
    assert " 12.3 ms by reader [id-1]" in line


def test_lines_for_machines_are_json():
    """Quotes in a path break nothing."""
    (line,) = logged(("::1", "GET", '/a"b', 404, 0.001, "id-2", None), as_json=True)
    entry = json.loads(line)
    assert entry["message"] == '::1 "GET /a"b" 404 1.0 ms'
    assert (entry["level"], entry["logger"], entry["request_id"]) == ("info", "oddigit.access", "id-2")
    fields = {"client": "::1", "method": "GET", "path": '/a"b', "status": 404, "ms": 1.0, "key": None, "bytes": 0}
    assert {name: entry[name] for name in fields} == fields
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])


def test_a_line_for_machines_says_what_was_judged():
    """The bytes of the body, and the Oddigit-Result header of the response; what it does not say is null."""
    length, results = (b"content-length", b"9"), (b"images=3, anomalies=1", b"images=2", b"problem=not-an-image")
    headers = [*([length, (b"oddigit-result", result)] for result in results), [length]]
    entries = [json.loads(line) for line in logged(*((*REQUEST, 784, sent) for sent in headers), as_json=True)]
    assert {entry["bytes"] for entry in entries} == {784}
    assert [tuple(entry[name] for name in ("images", "anomalies", "problem")) for entry in entries] == [
        (3, 1, None), (2, None, None), (None, None, "not-an-image"), (None, None, None),
    ]  # fmt: skip


def test_many_lines_do_not_wait():
    """A busy server writes before the time is over."""
    stream = io.StringIO()

    async def log():
        access_log = AccessLog(as_json=False, stream=stream)
        for _ in range(200):
            access_log.write(LoggedRequest(*REQUEST))

    asyncio.run(log())
    assert stream.getvalue().count("\n") == 200


def test_lines_that_cannot_be_written_are_lost():
    """A full disk costs the lines and nothing else: no error, and no memory."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    async def log():
        access_log = AccessLog(as_json=False, stream=Full())
        for _ in range(450):
            access_log.write(LoggedRequest(*REQUEST))
        access_log.flush()
        return access_log

    assert asyncio.run(log())._waiting == []
