"""Traces with OpenTelemetry: one span for each request and one for each of its stages.

OpenTelemetry's own OTEL_* variables configure it. Without an endpoint in them, tracing is off and costs nothing. The ASGI types
are written out here, so that telemetry imports no web framework.
"""

import logging
import sys
import time
from collections.abc import Awaitable, Callable, Container, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXCLUDED_URLS = "/livez$,/readyz$,/metrics$"  # machines poll these every few seconds


def with_tracing(app: ASGIApp, routes: Container[str], environment: Mapping[str, str]) -> ASGIApp:
    """`app` with tracing, or `app` itself where the environment names no endpoint for traces.

    A span is named after the request's path only if `routes` contains it, so that clients cannot create span names.
    """
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
            'tracing is off: %s is not installed; run: %s -m pip install "oddigit[trace]"', error.name, sys.executable
        )
        return app

    def span_details(scope: Scope) -> tuple[str, dict[str, str]]:
        method, path = scope["method"], scope["path"]
        return (f"{method} {path}", {"http.route": path}) if path in routes else (method, {})

    resource = Resource.create({"service.name": environment.get("OTEL_SERVICE_NAME") or "oddigit"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryMiddleware(
        StageSpans(app, provider.get_tracer("oddigit")),
        excluded_urls=_EXCLUDED_URLS,
        default_span_details=span_details,
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
    )


class StageSpans:
    """ASGI middleware inside the request's span: sets its request id and adds a span for each stage in Server-Timing."""

    def __init__(self, app: ASGIApp, tracer: "Tracer") -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._record(dict(message.get("headers", ())))
            await send(message)

        await self._app(scope, receive, send_and_record)

    def _record(self, headers: dict[bytes, bytes]) -> None:
        """Add the spans for a response with these headers. The last stage ends now, each other one where the next starts."""
        from opentelemetry.trace import get_current_span

        get_current_span().set_attribute("oddigit.request_id", headers.get(b"x-request-id", b"").decode())
        end = time.time_ns()
        for name, seconds in reversed(_parse_server_timing(headers.get(b"server-timing", b"").decode())):
            start = end - round(seconds * 1e9)
            self._tracer.start_span(name, start_time=start).end(end)
            end = start


def _parse_server_timing(value: str) -> list[tuple[str, float]]:
    """`decode;dur=0.1, queue;dur=0.2` (milliseconds) -> names and seconds, in order."""
    stages = (entry.strip().partition(";dur=") for entry in value.split(",") if entry)
    return [(name, float(milliseconds) / 1e3) for name, _, milliseconds in stages]
