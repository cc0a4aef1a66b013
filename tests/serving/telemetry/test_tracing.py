"""Traces, received by a real collector: an HTTP server that reads what the exporter sends."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from live import free_port, serving
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from app.serving.telemetry.tracing import is_configured

STAGES = ["decode", "queue", "infer", "encode"]


class Collector:
    """What was received, by span name."""

    def __init__(self):
        self.services, self.spans = set(), []

    def take(self, body):
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]

    def told(self, name):
        """The first span of this name; it may come a little later."""
        until = time.monotonic() + 20
        while not (found := [span for span in self.spans if span.name == name]):
            assert time.monotonic() < until, f"no span is called {name!r}"
            time.sleep(0.05)
        return found[0]


@contextmanager
def collecting():
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            collector.take(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments):
            pass

    receiver = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    try:
        yield (
            collector,
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server_port}",
                "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
                "OTEL_BSP_SCHEDULE_DELAY": "100",
            },
        )
    finally:
        receiver.shutdown()
        receiver.server_close()


@pytest.fixture(scope="module")
def traced(tiny_store, tmp_path_factory):
    """A server that traces, and the collector that it sends to."""
    with (
        collecting() as (collector, variables),
        serving(
            tmp_path_factory.mktemp("traced") / "log",
            *("--store", str(tiny_store), "--root-path", "/digits"),
            ODDIGIT_DRAIN_S="0",
            **variables,
        ) as server,
    ):
        yield server, collector


def attributes(span):
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


def test_a_question_is_a_span_with_its_stages(traced, samples):
    """The request's span takes up the client's trace and holds the four stages, in order and inside it."""
    server, collector = traced
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"content-type": "image/png", "x-request-id": "traced-1", "traceparent": f"00-{trace}-{parent}-01"}
    answer = httpx.post(f"{server.url}/score", content=(samples / "three.png").read_bytes(), headers=headers)
    assert answer.status_code == 200
    whole = collector.told("POST /score")
    assert (whole.trace_id.hex(), whole.parent_span_id.hex()) == (trace, parent)
    assert attributes(whole)["oddigit.request_id"] == "traced-1"
    assert attributes(whole)["http.status_code"] == 200
    stages = [collector.told(name) for name in STAGES]
    assert {stage.parent_span_id for stage in stages} == {whole.span_id}
    moments = [moment for stage in stages for moment in (stage.start_time_unix_nano, stage.end_time_unix_nano)]
    assert [whole.start_time_unix_nano, *moments, whole.end_time_unix_nano] == sorted(
        [whole.start_time_unix_nano, *moments, whole.end_time_unix_nano]
    )
    assert collector.services == {"oddigit"}


def test_clients_invent_no_names_and_probes_are_left_out(traced):
    """Unknown paths are named by their method alone; what machines ask every few seconds is not traced."""
    server, collector = traced
    for path in ("/livez", "/livez?x=1", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/some/invention"):
        httpx.get(server.url + path)
    span = collector.told("GET")
    assert attributes(span)["http.status_code"] == 404
    assert not [
        span for span in collector.spans if any(probe in span.name for probe in ("livez", "readyz", "metrics", "health"))
    ]


def test_requests_of_the_open_inference_protocol_have_names_and_stages(traced):
    """The span is named after the template of the path below the prefix, and holds the four stages."""
    server, collector = traced
    tensor = {"name": "x", "shape": [1, 784], "datatype": "UINT8", "data": [0] * 784}
    assert httpx.post(f"{server.url}/digits/v2/models/mnist/infer", json={"inputs": [tensor]}).status_code == 200
    whole = collector.told("POST /v2/models/{model}/infer")
    until = time.monotonic() + 20
    while len(stages := [span.name for span in collector.spans if span.parent_span_id == whole.span_id]) < 4:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert sorted(stages) == sorted(STAGES)


def test_every_worker_sends_its_spans_when_it_stops(tiny_store, tmp_path):
    """Those that waited for the next regular sending."""
    with collecting() as (collector, variables):
        variables |= {
            "OTEL_BSP_SCHEDULE_DELAY": "600000",
            "ODDIGIT_DRAIN_S": "0",
            "OTEL_RESOURCE_ATTRIBUTES": "service.name=mine",
        }
        with serving(tmp_path / "log", "--store", str(tiny_store), "--workers", "2", **variables) as server:
            for _ in range(20):  # new connections, which the kernel spreads over the workers
                assert httpx.get(f"{server.url}/models").status_code == 200
            assert not collector.spans
        assert [span.name for span in collector.spans].count("GET /models") == 20
        assert collector.services == {"mine"}


@pytest.mark.parametrize(
    ("variables", "configured"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
    ],
)
def test_the_variables_of_opentelemetry_turn_traces_on_and_off(variables, configured):
    """As its specification has them."""
    assert is_configured(variables) is configured


def test_a_collector_that_is_away_disturbs_nobody(tiny_store, tmp_path, samples):
    """Questions are answered and the server stops with success, though nobody takes its traces."""
    endpoint = f"http://127.0.0.1:{free_port()}"
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "0.5", "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path / "log", "--store", str(tiny_store), **variables) as server:
        image = (samples / "three.png").read_bytes()
        assert httpx.post(f"{server.url}/score", content=image, headers={"content-type": "image/png"}).status_code == 200
        leaving = time.monotonic()
    assert time.monotonic() - leaving < 20
