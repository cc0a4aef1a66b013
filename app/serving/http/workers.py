"""Several worker processes on one port. On Linux each has its own socket, and the kernel spreads new connections over them.

With one shared socket, the process that wakes first accepts all waiting connections: of 64 connections opened at once, one of
two processes got 62, and once all of them.
"""

import socket
import sys
from typing import Any, Self

import uvicorn
from uvicorn.supervisors import Multiprocess


def serve(workers: int, *, host: str, port: int, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
    """Serve with `workers` processes until a signal stops them; `options` are those of `uvicorn.run`.

    Raises:
        OSError: the address is in use or not available.
    """
    with socket.socket(_family(host)) as alone:  # SO_REUSEPORT alone would accept another server on the port
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
    if workers == 1 or sys.platform != "linux":  # elsewhere the newest socket gets all connections
        uvicorn.run(host=host, port=port, workers=workers, **options)
        return
    config = uvicorn.Config(host=host, port=port, workers=workers, **options)
    with ReusePortSocket.on(host, port) as reserved:
        Multiprocess(config, sockets=[reserved]).run()


class ReusePortSocket(socket.socket):
    """A socket that, when it is pickled for another process, becomes a new socket on the same address there."""

    @classmethod
    def on(cls, host: str, port: int) -> Self:
        """A bound socket. Raises OSError if the address is used by a socket without SO_REUSEPORT."""
        sock = cls(_family(host))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        return sock

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).on, self.getsockname()[:2]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
