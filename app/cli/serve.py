"""The command `serve`: serve a detector over HTTP."""

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

_SHUTDOWN_TIMEOUT_S = 30  # after the drain: longest time until responses in progress are sent and read


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve side by side; one a core is plenty.")] = 1,
    store: Annotated[
        str | None,
        typer.Option(metavar="FOLDERS", help="Folders of detectors; unset, yours and the shipped one."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Which detector of the store; unset, mnist.")] = None,
    version: Annotated[
        int | None,
        typer.Option(min=1, help="Serve this version; unset, the highest in the first of the folders with the detector."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; unset, auto.")] = None,
    root_path: Annotated[str | None, typer.Option(help="Path prefix under which a reverse proxy publishes the server.")] = None,
) -> None:
    """Serve a detector over HTTP.

    All other settings are ODDIGIT_* variables; docs/configuration.md lists them. An option wins over its variable.
    """
    # As process 1, SIGTERM has no effect without a handler. uvicorn replaces this one, and raises the signal again at its end.
    signal.signal(signal.SIGTERM, _exit_on_sigterm)

    given = {"STORE": store, "MODEL": model, "VERSION": version, "DEVICE": device, "ROOT_PATH": root_path}
    os.environ.update({f"ODDIGIT_{name}": str(value) for name, value in given.items() if value is not None})
    with _shared_metrics(workers):  # before prometheus_client is imported, which looks for the folder
        _serve(host, port, workers)


def _exit_on_sigterm(*_: object) -> None:
    """Call the functions that were registered with atexit, and end the process with code 0, whatever it is doing.

    SystemExit would be raised inside of the code that the signal interrupts: libraries turn it into an error of their own, or
    drop it. And a daemon thread that loads a model may abort the process while the interpreter shuts down.
    """
    atexit._run_exitfuncs()
    os._exit(0)


def _serve(host: str, port: int, workers: int) -> None:
    from prometheus_client import CollectorRegistry

    from app.main import check_settings  # not at the top: the other commands do not need the server
    from app.serving.http import workers as processes
    from app.serving.http.auth import KeysError
    from app.serving.http.connections import ConnectionLimits
    from app.serving.http.protocol import LimitedProtocol
    from app.serving.http.sockets import raise_open_file_limit
    from app.serving.settings import SettingsError, read_settings
    from app.serving.telemetry.log_setup import set_up_logging
    from app.serving.telemetry.metrics import worker_deaths

    try:
        settings = read_settings(os.environ)
        check_settings(settings)
    except (SettingsError, KeysError, RuntimeError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    set_up_logging(settings.log_format)
    # With N workers, each uses N x ODDIGIT_DRIFT_LEVEL as its alarm level, so that together they keep the false-alarm rate.
    os.environ["ODDIGIT_DRIFT_LEVEL"] = str(settings.drift_level * workers)
    connections = raise_open_file_limit(settings.max_connections)  # the workers inherit the limit
    limits = ConnectionLimits(
        max_connections=connections, head_timeout_s=settings.head_timeout_s, write_timeout_s=settings.answer_timeout_s
    )
    try:
        processes.serve(
            workers,
            app="app.main:app",
            host=host,
            port=port,
            on_death=worker_deaths(CollectorRegistry()).inc,
            loop="uvloop",
            http=partial(LimitedProtocol, limits=limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=_SHUTDOWN_TIMEOUT_S,
            proxy_headers=False,  # create_app handles ODDIGIT_TRUSTED_PROXIES
        )
    except OSError as error:
        print(f"{host}:{port} cannot be used: {error.strerror}.", file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """Give several workers a common folder for their metrics, so that each can report all; remove it at the end."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # prometheus_client would take an empty one for the working folder
    if workers == 1 or "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        yield
        return
    try:
        folder = TemporaryDirectory(prefix="oddigit-metrics-")
    except OSError as error:  # a full disk
        print(f"Workers do not share their metrics: {error.strerror}.", file=sys.stderr)
        yield
        return
    with folder as name:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = name
        yield
