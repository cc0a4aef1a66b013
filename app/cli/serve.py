"""The command `serve`: serve a detector over HTTP."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

_LONGEST_STOP_S = 30  # what was accepted has its answer long before; a client may be slow to read it


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that serve side by side; one a core is plenty.")] = 1,
    store: Annotated[Path | None, typer.Option(help="Folder of detectors; unset, the shipped one.")] = None,
    model: Annotated[str | None, typer.Option(help="Which detector of the store; unset, mnist.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Serve this version; unset, the highest.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:N or mps; unset, auto.")] = None,
) -> None:
    """Serve a detector over HTTP.

    Every further knob is an ODDIGIT_* variable; the README lists them. An option given here wins over its variable.
    """
    from app.main import check_settings  # the commands that do not serve need not wait for it
    from app.serving.http import workers as processes
    from app.serving.http.auth import KeysError
    from app.serving.settings import SettingsError, read_settings

    given = {"STORE": store, "MODEL": model, "VERSION": version, "DEVICE": device}
    os.environ.update({f"ODDIGIT_{name}": str(value) for name, value in given.items() if value is not None})
    try:
        settings = read_settings(os.environ)
        check_settings(settings)
    except (SettingsError, KeysError, RuntimeError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    # Each worker bets on its own traffic: all together they keep the promise when each keeps so much more.
    os.environ["ODDIGIT_DRIFT_LEVEL"] = str(settings.drift_level * workers)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again when all is done
    try:
        with _shared_metrics(workers):
            processes.serve(
                workers,
                app="app.main:app",
                host=host,
                port=port,
                loop="uvloop",
                http="app.serving.http.protocol:LimitedProtocol",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_LONGEST_STOP_S,
                proxy_headers=False,  # nothing asks who the client is
            )
    except OSError as error:
        print(f"{host}:{port} cannot be listened on: {error.strerror}.", file=sys.stderr)
        raise typer.Exit(2) from None


@contextmanager
def _shared_metrics(workers: int) -> Iterator[None]:
    """A folder where several workers keep their metrics, so that each can tell of all; gone when they are."""
    if workers == 1 or "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        yield
        return
    with TemporaryDirectory(prefix="oddigit-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield
