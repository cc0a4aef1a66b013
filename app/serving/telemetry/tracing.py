"""Traces: a span a request, and one for each of its stages, by OpenTelemetry where its packages are installed.

Everything is set by OpenTelemetry's own variables; without an endpoint to send to, nothing is traced and nothing is paid.
"""

import logging
import sys
import time
from collections.abc import Container, Mapping
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_SILENT = "/livez$,/readyz$,/metrics$"  # asked every few seconds by machines; they would bury the rest


def traced(app: ASGIApp, routes: Container[str], environment: Mapping[str, str]) -> ASGIApp:
    """`app` with traces, or `app` itself where none are asked for. Spans are named after their path if it is one of `routes`:
    clients must not invent names."""
    if not any(environment.get(name) for name in _ENDPOINTS):
        return app
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        logger.warning(
            'nothing is traced: %s is not installed; run: %s -m pip install "oddigit[trace]"', error.name, sys.executable
        )
        return app

    def details(scope: Scope) -> tuple[str, dict[str, str]]:
        method, path = scope["method"], scope["path"]
        return (f"{method} {path}", {"http.route": path}) if path in routes else (method, {})

    resource = Resource.create({"service.name": environment.get("OTEL_SERVICE_NAME") or "oddigit"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryMiddleware(
        Stages(app, provider.get_tracer("oddigit")),
        excluded_urls=_SILENT,
        default_span_details=details,
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
    )


class Stages:
    """ASGI middleware inside the request's span: adds the request id to it, and a span for each stage of Server-Timing."""

    def __init__(self, app: ASGIApp, tracer: "Tracer") -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def seen(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._tell(dict(message.get("headers", ())))
            await send(message)

        await self._app(scope, receive, seen)

    def _tell(self, headers: dict[bytes, bytes]) -> None:
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("oddigit.request_id", headers.get(b"x-request-id", b"").decode())
        end = time.time_ns()
        for name, took in reversed(_stages(headers.get(b"server-timing", b"").decode())):
            start = end - round(took * 1e9)
            self._tracer.start_span(name, start_time=start).end(end)
            end = start


def _stages(server_timing: str) -> list[tuple[str, float]]:
    """`decode;dur=0.1, queue;dur=0.2` -> names and seconds, in order."""
    stages = (entry.strip().partition(";dur=") for entry in server_timing.split(",") if entry)
    return [(name, float(milliseconds) / 1e3) for name, _, milliseconds in stages]
