"""Limits that the operating system keeps for sockets: open files, and clients that accept no data."""

import logging
import resource
import socket
import sys

logger = logging.getLogger(__name__)

_MOST_MS = 2**31 - 1  # of a timeout: 25 days
_RESERVED_FILES = 128  # open files that a process needs beside its connections


def raise_open_file_limit(connections: int) -> int:
    """Raise this process's limit on open files as far as the system allows; returns how many of `connections` then fit.

    A server that runs out of open files cannot even refuse a connection.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    wanted = connections + _RESERVED_FILES
    if soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    fitting = max(1, min(connections, soft - _RESERVED_FILES))
    if fitting < connections:
        logger.warning("the system allows %d open files: at most %d connections, not %d", soft, fitting, connections)
    return fitting


def set_write_timeout(sock: socket.socket, seconds: float) -> None:
    """Let the kernel close the connection when the client has accepted no byte of pending data for `seconds` (Linux only)."""
    if sys.platform == "linux" and sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(min(seconds * 1000, _MOST_MS))))
