import json
import math
import re
import shutil
import socket
import time

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from live import ROOT, head, serving, speak
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from strokes import npy, png, stroke_images

from app.serving.telemetry.metrics import Metrics, observe_many

PNG, NPY = {"content-type": "image/png"}, {"content-type": "application/x-npy"}
GOOD = png(stroke_images(1, seed=0)[0])
STAGES = ("decode", "queue", "infer", "encode")
KINDS = {"counter": "_total", "histogram": "", "gauge": ""}


def documented():
    """The documentation's table of metrics: name -> (labels, kind, sentence)."""
    rows = re.findall(
        r"^\| `(oddigit_\w+)`(?: by ([\w, ]+))? \| (\w+) \| (.+?) \|$",
        (ROOT / "docs" / "operating.md").read_text(),
        re.MULTILINE,
    )
    return {name: (frozenset(labels.split(", ")) - {""}, kind, sentence) for name, labels, kind, sentence in rows}


def families(client):
    """The server's own metrics: name, as in the table, -> family; without the times at which prometheus_client made them."""
    found = text_string_to_metric_families(client.get("/metrics").text)
    ours = [family for family in found if family.name.startswith("oddigit_") and not family.name.endswith("_created")]
    return {family.name + KINDS.get(family.type, ""): family for family in ours}


def value(client, name, **labels):
    """The sum of the samples of this name that have these labels."""
    samples = [sample for family in families(client).values() for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


@pytest.fixture(scope="module")
def busy(tiny_store, tmp_path_factory):
    """A server of one's own, so that nobody else moves its metrics."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0", "ODDIGIT_LOG_FORMAT": "json"}
    with serving(tmp_path_factory.mktemp("busy") / "log", **variables) as running:
        yield running


@pytest.fixture(scope="module")
def own(busy):
    """Its client, after one good question and one bad."""
    with httpx.Client(base_url=busy.url, timeout=60) as client:
        client.post("/score", content=GOOD, headers=PNG).raise_for_status()
        assert client.post("/score", content=b"x", headers=PNG).status_code == 400
        yield client


def test_the_readmes_table_lists_what_there_is(own):
    """Every metric of the table exists with its kind, labels and sentence, and there is none that the table leaves out."""
    there, table = families(own), documented()
    assert set(there) == set(table)
    for name, (labels, kind, sentence) in table.items():
        assert there[name].type == kind
        assert there[name].documentation == sentence
        if there[name].samples:
            assert set(there[name].samples[0].labels) - {"le"} == labels, name


MOVES = {
    "oddigit_requests_total": ({"route": "/score", "status": "200"}, 3),
    "oddigit_request_seconds_count": ({"route": "/score"}, 4),
    "oddigit_refused_total": ({"reason": "not-an-image"}, 1),
    "oddigit_batch_images_count": ({}, 3),
    "oddigit_batch_images_sum": ({}, 42),
    "oddigit_stage_seconds_count": ({"stage": "decode"}, 3),
    "oddigit_images_total": ({}, 42),
    "oddigit_score_count": ({}, 42),
    "oddigit_p_value_count": ({}, 42),
}


def test_metrics_move_with_the_traffic(own):
    """Two images, an array of forty and one that cannot be read: each counter and histogram has grown by just that."""
    before = {name: value(own, name, **labels) for name, (labels, _) in MOVES.items()}
    for _ in range(2):
        own.post("/score", content=GOOD, headers=PNG).raise_for_status()
    scored = own.post("/score", content=npy(stroke_images(40, seed=3)), headers=NPY).json()["results"]
    own.post("/score", content=b"no image", headers=PNG)
    grown = {name: value(own, name, **labels) - before[name] for name, (labels, _) in MOVES.items()}
    assert grown == {name: by for name, (_, by) in MOVES.items()}
    assert value(own, "oddigit_score_sum") >= sum(result["score"] for result in scored)
    for name in ("request_seconds", "stage_seconds"):
        assert value(own, f"oddigit_{name}_sum") > 0


def test_verdicts_are_counted_as_they_were_given(own):
    """Anomalies and normals by the model's own threshold, each where it belongs."""
    before = {verdict: value(own, "oddigit_images_total", verdict=verdict) for verdict in ("anomaly", "normal")}
    images = np.concatenate([np.full((20, 28, 28), 255, np.uint8), stroke_images(20, seed=4)])
    verdicts = [r["is_anomaly"] for r in own.post("/score", content=npy(images), headers=NPY).json()["results"]]
    assert 0 < sum(verdicts) < 40
    assert value(own, "oddigit_images_total", verdict="anomaly") - before["anomaly"] == sum(verdicts)
    assert value(own, "oddigit_images_total", verdict="normal") - before["normal"] == 40 - sum(verdicts)


def test_only_what_is_judged_is_counted_as_judged(own):
    """One image scored, embedded and reconstructed is one verdict and one bet; /v2 judges when it is asked for a verdict."""
    image = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28], "data": stroke_images(1, seed=5).ravel().tolist()}

    def verdict_counts():
        return value(own, "oddigit_images_total"), value(own, "oddigit_score_count"), own.get("/drift").json()["images"]

    before, batches = verdict_counts(), value(own, "oddigit_batch_images_sum")
    for path in ("/embed", "/reconstruct"):
        own.post(path, content=GOOD, headers=PNG).raise_for_status()
        own.post(path, content=npy(stroke_images(3, seed=6)), headers=NPY).raise_for_status()
    own.post("/v2/models/mnist/infer", json={"inputs": [image], "outputs": [{"name": "embedding"}]}).raise_for_status()
    assert verdict_counts() == before
    assert value(own, "oddigit_batch_images_sum") == batches + 9
    own.post("/score", content=GOOD, headers=PNG).raise_for_status()
    own.post("/v2/models/mnist/infer", json={"inputs": [image]}).raise_for_status()
    assert verdict_counts() == tuple(count + 2 for count in before)


def test_what_is_refused_for_its_alpha_is_not_counted_as_judged(own):
    """An alpha that the calibration is too small for is noticed after the forward pass; the response has no verdict."""
    many = npy(stroke_images(200, seed=7))
    image = {"name": "images", "datatype": "UINT8", "shape": [1, 28, 28], "data": stroke_images(1, seed=5).ravel().tolist()}
    before = value(own, "oddigit_images_total"), own.get("/drift").json()["images"]
    for path, content, headers in (("/score", GOOD, PNG), ("/score", many, NPY), ("/inspect", GOOD, PNG)):
        assert own.post(f"{path}?alpha=1e-6", content=content, headers=headers).status_code == 422
    asked = {"inputs": [image], "parameters": {"alpha": 1e-6}}
    assert own.post("/v2/models/mnist/infer", json=asked).status_code == 422
    embedding = own.post("/v2/models/mnist/infer", json={**asked, "outputs": [{"name": "embedding"}]})
    assert (embedding.status_code, embedding.headers["oddigit-result"]) == (200, "images=1")
    assert (value(own, "oddigit_images_total"), own.get("/drift").json()["images"]) == before


def test_requests_that_no_application_sees_are_counted(busy, own):
    """A malformed request and one with too many fields are refused by the connection; both have an id and are counted."""
    many_fields = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 200 + b"\r\n"
    for reason, sent in (("bad-request", b"GARBAGE\r\n\r\n"), ("too-large", many_fields)):
        before = value(own, "oddigit_refused_total", reason=reason)
        answer = speak(busy, sent)
        assert answer.headers["oddigit-result"] == f"problem={reason}"
        assert answer.headers["x-request-id"] == json.loads(answer.body)["request_id"] != ""
        assert value(own, "oddigit_refused_total", reason=reason) == before + 1
        assert value(own, "oddigit_requests_total", route="other", status=str(answer.status)) >= 1


def test_the_model_in_service_is_named(own):
    """Which detector, version, scorer and device: the same as /readyz and the card say."""
    card = own.get("/model").json()
    labels = {"model": card["name"], "version": str(card["version"]), "scorer": card["scorer"], "device": card["device"]}
    assert value(own, "oddigit_model_info", **labels) == value(own, "oddigit_model_info") == 1
    assert value(own, "oddigit_reloads_total", outcome="taken_up") == 1


def test_drift_is_a_gauge(own):
    """What /drift says is what the gauges say, before an alarm and after."""
    for _ in range(2):
        drift = own.get("/drift").json()
        assert value(own, "oddigit_drift_capital") == pytest.approx(drift["capital"])
        assert value(own, "oddigit_drifting") == drift["drifting"]
        noise = np.random.RandomState(0).randint(0, 256, (1000, 28, 28)).astype(np.uint8)
        own.post("/score", content=npy(noise), headers=NPY).raise_for_status()
    assert drift["drifting"]


def test_what_is_under_way_is_a_gauge(own):
    """With nothing to do nothing is under way and nothing waits; what waits is the value of the gauge."""
    assert value(own, "oddigit_in_flight") == 0
    assert value(own, "oddigit_queue_images") == 0
    metrics = Metrics()
    metrics.for_model("m").set_gauges(queued_images=7, drift_capital=1.0, drifting=False)
    assert b'oddigit_queue_images{model="m"} 7.0' in metrics.text()


def test_routes_are_counted_by_their_templates(busy, own):
    """A path, picture or method that a client invents makes no time series of its own, even if the request is refused early."""
    before = value(own, "oddigit_requests_total", route="other", status="400")
    for index in range(20):
        own.get(f"/nowhere/{index}")
        own.get(f"/model/report/{index}.png")
        own.get(f"/problems/{index}")
        own.post(f"/score/{index}")
        own.request(f"BREW{index}", "/score")
        assert own.get(f"/encoded/{index}", headers={"content-encoding": "gzip"}).status_code == 415
        assert speak(busy, f"GET /without-host/{index} HTTP/1.1\r\n\r\n".encode()).status == 400
        with socket.create_connection(("127.0.0.1", busy.port)) as line:  # and leave in the middle of the body
            line.sendall(head("/v2/models/mnist/infer", content_length=9) + b"cut")
    left = {"route": "/v2/models/{model}/infer", "status": "499"}
    until = time.monotonic() + 20
    while value(own, "oddigit_requests_total", **left) < 20:
        assert time.monotonic() < until
        time.sleep(0.1)
    there = families(own)
    routes = {sample.labels["route"] for sample in there["oddigit_requests_total"].samples}
    assert {"/model/report/{picture}", "/problems/{type}", "other"} <= routes
    assert value(own, "oddigit_requests_total", route="other", status="415") == 20
    assert (
        value(own, "oddigit_requests_total", route="other", status="400") == before + 40  # no Host; no HTTP
    )  # without Host, and methods that HTTP does not have
    assert not any(character.isdigit() for route in routes for character in route.removeprefix("/v2"))
    assert len(there["oddigit_refused_total"].samples) < 30


def test_the_last_requests_before_a_stop_are_counted(tiny_store, tmp_path):
    """A worker that stops leaves its numbers to the others."""
    shared = tmp_path / "metrics"
    shared.mkdir()
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0", "PROMETHEUS_MULTIPROC_DIR": str(shared)}
    with serving(tmp_path / "log", **variables) as server, httpx.Client(base_url=server.url) as client:
        for _ in range(5):
            client.get("/livez").raise_for_status()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(shared))
    assert registry.get_sample_value("oddigit_requests_total", {"route": "/livez", "status": "200"}) == 5


def test_without_the_folder_that_workers_share_one_has_its_own_numbers(tiny_store, tmp_path):
    """A program that cleans /tmp may remove it."""
    shared = tmp_path / "metrics"
    shared.mkdir()
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0", "PROMETHEUS_MULTIPROC_DIR": str(shared)}
    with serving(tmp_path / "log", **variables) as server, httpx.Client(base_url=server.url) as client:
        client.post("/score", content=GOOD, headers=PNG).raise_for_status()
        shutil.rmtree(shared)
        assert client.post("/embed", content=GOOD, headers=PNG).status_code == 200
        assert value(client, "oddigit_requests_total", route="/score", status="200") == 1


def test_every_answer_is_counted_by_its_status(own):
    """Probes, the page, refusals and what is not there."""
    for method, path, route, status in (
        ("GET", "/livez", "/livez", 200),
        ("GET", "/", "/", 200),
        ("GET", "/score", "/score", 405),
        ("POST", "/score", "/score", 415),
        ("GET", "/nowhere", "other", 404),
        ("POST", "/decode", "/decode", 400),
    ):
        before = value(own, "oddigit_requests_total", route=route, status=str(status))
        assert own.request(method, path).status_code == status
        until = time.monotonic() + 20  # a file is counted when it is closed again, a little after it was sent
        while value(own, "oddigit_requests_total", route=route, status=str(status)) == before:
            assert time.monotonic() < until, (method, path)
        assert value(own, "oddigit_requests_total", route=route, status=str(status)) == before + 1, (method, path)


def test_the_format_is_prometheuss_own(own):
    """Its type, help and type lines for each family, and the process's own metrics beside ours."""
    response = own.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "process_resident_memory_bytes" in response.text


@pytest.mark.parametrize("path", ["/score", "/embed", "/reconstruct"])
def test_every_good_answer_says_where_its_time_went(own, path):
    """Server-Timing has the four stages in milliseconds (W3C Server Timing)."""
    timing = own.post(path, content=GOOD, headers=PNG).headers["server-timing"]
    assert re.fullmatch(r"\w+;dur=\d+\.\d{3}(, \w+;dur=\d+\.\d{3})*", timing)
    assert tuple(part.partition(";")[0] for part in timing.split(", ")) == STAGES


def test_the_request_id_is_in_answer_and_log(busy, own):
    """One id in the header, in a problem's body and in the JSON line, for good answers and bad ones."""
    for index, (body, status) in enumerate(((GOOD, 200), (b"x", 400))):
        sent = f"job-{index}.{time.time_ns()}"
        response = own.post("/score", content=body, headers={**PNG, "x-request-id": sent})
        assert (response.status_code, response.headers["x-request-id"]) == (status, sent)
        assert status == 200 or response.json()["request_id"] == sent
        entry = json.loads(busy.told(sent))
        assert entry["request_id"] == sent
        assert f'"POST /score" {status}' in entry["message"]


def test_a_client_cannot_forge_a_line_of_the_log(server):
    """Line ends and escapes in a path stay inside their line, in the log for people too."""
    path = "/x%0a00:00:00%20INFO%20forged-line%1b[31m%0d%e2%80%a8"
    assert speak(server, head(path, "GET", x_request_id="forger-1")).status == 404
    line = server.told("forger-1")
    assert '"GET ' in line
    assert "forged-line" in line
    assert "\x1b" not in line


def test_two_workers_count_as_one(tiny_store, tmp_path):
    """The scraped worker adds up both workers' numbers; their folder is removed at the end. Each drift alarm level is
    twice the setting, which keeps the combined probability of a false alarm."""
    metrics_root = tmp_path / "tmp"
    metrics_root.mkdir()
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_DRAIN_S": "0", "ODDIGIT_DRIFT_LEVEL": "30"}
    with serving(tmp_path / "log", "--workers", "2", TMPDIR=str(metrics_root), **variables) as server:
        assert list(metrics_root.glob("oddigit-metrics-*"))
        with httpx.Client(base_url=server.url, timeout=60, headers={"connection": "close"}) as client:
            wait_for(client, "oddigit_reloads_total", 2, outcome="taken_up")  # one worker is ready before the other
            assert client.get("/drift").json()["level"] == 60
            for _ in range(40):  # a connection each, so that both workers get some
                client.post("/score", content=GOOD, headers=PNG).raise_for_status()
            for name, labels in (("images", {}), ("requests", {"route": "/score", "status": "200"})):
                wait_for(client, f"oddigit_{name}_total", 40, **labels)
            assert value(client, "oddigit_score_count") == 40
            assert value(client, "oddigit_model_info") == 1
            wait_for(client, "oddigit_in_flight", 0)
            assert workers_with("process_cpu_seconds_total", client) == workers_with("process_open_fds", client)
            assert len(workers_with("process_resident_memory_bytes", client)) == 2
            counters = {name for name, (_, kind, _) in documented().items() if kind != "gauge"}
            assert set(families(client)) >= counters - {"oddigit_refused_total"}
    assert not list(metrics_root.glob("oddigit-metrics-*"))


def workers_with(name, client):
    """The process ids that have a positive value of this metric."""
    found = text_string_to_metric_families(client.get("/metrics").text)
    return {s.labels["pid"] for family in found for s in family.samples if s.name == name and s.value > 0}


def wait_for(client, name, expected, **labels):
    """Wait until this metric has the expected value; a worker writes its numbers once a second."""
    until = time.monotonic() + 40
    while (found := value(client, name, **labels)) != expected:
        assert time.monotonic() < until, (name, found)
        time.sleep(0.2)


@given(arrays(np.float32, st.integers(0, 50), elements=st.floats(0, 200, width=32)))
def test_many_observations_at_once_are_as_many_single_ones(values):
    """An array's worth of values fills the same buckets as one value after the other, those on a border too."""
    bounds = (0.25, 0.5, 1, 1.5, 3, 10, 100)
    many, single = (Histogram("h", "h", buckets=bounds, registry=CollectorRegistry()) for _ in range(2))
    observe_many(many, bounds, values)
    for one in values.tolist():
        single.observe(one)
    (actual,), (expected,) = many.collect(), single.collect()
    for ours, theirs in zip(actual.samples, expected.samples, strict=True):
        if not ours.name.endswith("_created"):
            assert math.isclose(ours.value, theirs.value, rel_tol=1e-6, abs_tol=1e-6), ours
