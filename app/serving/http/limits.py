"""What all connections of a server share: how many there may be, the room for their bodies, when to turn crowds away."""

import logging
import resource
import sys
import time
from asyncio import AbstractEventLoop
from collections.abc import Callable
from typing import NamedTuple

from starlette.types import Scope

logger = logging.getLogger(__name__)

STATE_KEY = "oddigit_limits"
NO_ROOM = "oddigit_no_room"  # in a request's state: the rest of its body is not kept
DROPPED_BYTES = 2**20  # largest body that is read only to be dropped
_OWN_FILES = 128  # open files of the process itself
_REST_S = 0.003

Header = tuple[bytes, bytes]
Answer = tuple[int, list[Header], bytes]  # status, headers, body


class Limits(NamedTuple):
    """What the application hands over in its lifespan state, under STATE_KEY."""

    connections: int
    head_timeout_s: float
    answer_timeout_s: float
    body_room: "Room"
    direct: bool = False  # nothing between server and application wants to see ASGI's messages
    dropped_bytes: int = 0
    crowded: Callable[[], bool] = lambda: False  # whether there is room for no further question
    turn_away: Callable[[Scope], Answer | None] = lambda scope: None  # by its head: the answer to one, None for other requests
    breather: "Breather | None" = None  # taken after each that was turned away


class Room:
    """For the bodies of all connections together. Small ones always find some."""

    def __init__(self, size: int) -> None:
        """`size` in bytes, not counting the first 64 KiB of each body."""
        self._left = size

    def take(self, size: int) -> bool:
        """Whether there was room for so many bytes more; they are to be given back either way."""
        self._left -= size
        return self._left >= 0

    def give_back(self, size: int) -> None:
        self._left += size


def room_for(connections: int) -> int:
    """Raise this process's limit on open files as far as the system lets it -> how many of so many connections then fit.

    A server that runs out of open files cannot even refuse.
    """
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (sys.maxsize if limit == resource.RLIM_INFINITY else limit for limit in limits)
    wanted = connections + _OWN_FILES
    if soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, limits[1]))
    if soft < wanted:
        logger.warning("the system allows %d open files: room for %d connections, not %d", soft, soft - _OWN_FILES, connections)
    return max(1, min(connections, soft - _OWN_FILES))


class Breather:
    """A rest of the event loop, so that a crowd's requests come several at a time.

    Each one that comes alone interrupts a thread at work, which takes as long as turning the request away.
    """

    def __init__(self, useful: Callable[[], bool]) -> None:
        """`useful`: whether other threads have enough to do meanwhile."""
        self._useful = useful
        self._due = False

    def take(self, loop: AbstractEventLoop) -> None:
        """Rest when this round of the loop is over, once."""
        if not self._due and self._useful():
            self._due = True
            loop.call_soon(self._rest)

    def _rest(self) -> None:
        self._due = False
        time.sleep(_REST_S)
