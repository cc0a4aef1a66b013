"""Traces with OpenTelemetry: one span for each request and one for each of its stages.

OpenTelemetry's own OTEL_* variables configure it. Without an endpoint in them, tracing is off and costs nothing. The ASGI types
are written out here, so that telemetry imports no web framework.
"""

import asyncio
import logging
import re
import sys
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_POLLED = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")  # machines ask these every few seconds
_EXCLUDED_URLS = ",".join(rf"{path}(\?|$)" for path in _POLLED)
_FLUSH_MS = 5000  # at the end, for the spans that have not been sent yet


def is_configured(environment: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's variables ask for traces: an endpoint is named, and nothing turns them off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(environment.get(name) for name in _ENDPOINTS)


def with_tracing(app: ASGIApp, routes: Collection[str], root_path: str, environment: Mapping[str, str]) -> ASGIApp:
    """`app` with tracing, or `app` itself where the environment asks for none.

    A span is named after the template of the request's path below `root_path` among `routes`, so that clients cannot create
    span names.
    """
    if not is_configured(environment):
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

    # A route without a parameter is its own template, and is looked for first.
    ordered = sorted(routes, key=lambda route: "{" in route)
    templates = [(re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(route))), route) for route in ordered]

    def span_details(scope: Scope) -> tuple[str, dict[str, str]]:
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", "")).removeprefix(root_path)
        route = next((route for pattern, route in templates if pattern.fullmatch(path)), None)
        return (f"{method} {route}", {"http.route": route}) if route else (method, {})

    resource = Resource.create({} if _names_service(environment) else {"service.name": "oddigit"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OpenTelemetryMiddleware(
        StageSpans(app, provider),
        excluded_urls=_EXCLUDED_URLS,
        default_span_details=span_details,
        tracer_provider=provider,
        exclude_spans=["receive", "send"],
    )


def _names_service(environment: Mapping[str, str]) -> bool:
    return bool(environment.get("OTEL_SERVICE_NAME")) or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")


class StageSpans:
    """ASGI middleware inside the request's span: sets its request id and adds a span for each stage in Server-Timing.

    When the application shuts down, it sends the spans that wait: uvicorn ends its workers by a signal, without atexit.
    """

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        self._app = app
        self._provider = provider
        self._tracer = provider.get_tracer("oddigit")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_and_record(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._record(dict(message.get("headers", ())))
            elif message["type"] == "lifespan.shutdown.complete":
                await asyncio.to_thread(self._provider.force_flush, _FLUSH_MS)
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
