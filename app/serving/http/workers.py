"""Several processes on one port. On Linux each has a socket of its own, and the kernel spreads new connections over them.

From one socket that all share, whoever wakes first takes whatever has come: of 64 connections at once, one of two processes
got 62, and once all of them. The others then have nothing to do.
"""

import socket
import sys
from typing import Any, Self

import uvicorn
from uvicorn.supervisors import Multiprocess


def serve(workers: int, *, host: str, port: int, **options: Any) -> None:  # noqa: ANN401 - uvicorn's own
    """Serve with so many processes until told to stop; `options` are those of `uvicorn.run`.

    Raises:
        OSError: the address cannot be listened on.
    """
    with socket.socket(_family(host)) as alone:  # sockets that share a port would put up with another server's
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
    if workers == 1 or sys.platform != "linux":  # elsewhere the last to listen on a port gets everything
        uvicorn.run(host=host, port=port, workers=workers, **options)
        return
    config = uvicorn.Config(host=host, port=port, workers=workers, **options)
    with ReusePortSocket.on(host, port) as reserved:
        Multiprocess(config, sockets=[reserved]).run()


class ReusePortSocket(socket.socket):
    """A socket that reaches another process as a further one on the same address, rather than as itself."""

    @classmethod
    def on(cls, host: str, port: int) -> Self:
        """Raises OSError where there are others on the address that do not share it."""
        sock = cls(_family(host))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        return sock

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).on, self.getsockname()[:2]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
