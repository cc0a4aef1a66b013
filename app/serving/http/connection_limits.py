"""What all connections of a server share: their limits, which of them wait for a request, and whose turn it is."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from app.serving.http.body import ByteRate
from app.serving.http.held_transport import HeldTransport

_EVICT_AFTER_S = 0.25  # a connection that has waited this long for a request makes room for a new one


class OpenConnections:
    """The connections of a server."""

    def __init__(self) -> None:
        self.count = 0
        # Those that wait for a request, and the loop times since which they do; the first has waited longest.
        self._waiting: OrderedDict[HeldTransport, float] = OrderedDict()

    def begin_wait(self, transport: HeldTransport) -> None:
        """From now on this connection waits for a request."""
        self._waiting[transport] = asyncio.get_running_loop().time()

    def end_wait(self, transport: HeldTransport) -> None:
        """This connection has a request, or is closed."""
        self._waiting.pop(transport, None)

    def evict(self) -> bool:
        """Close the connection that has waited longest for a request, to make room. Returns whether one could be closed."""
        while (oldest := next(iter(self._waiting))).is_closing():
            del self._waiting[oldest]
        if self._waiting[oldest] > asyncio.get_running_loop().time() - _EVICT_AFTER_S:
            return False
        del self._waiting[oldest]
        oldest.close()
        return True


class IterationLimit:
    """Limits how many connections do their work in one iteration of the event loop; the others wait, in order.

    The first requests of 500 clients that connect at the same time would otherwise be parsed in one iteration, of 80 ms.
    """

    def __init__(self, connections: int = 4) -> None:
        """`connections` is the most for one iteration."""
        self._most = self._left = connections
        self._waiting: deque[tuple[HeldTransport, Callable[[], None]]] = deque()

    def run(self, transport: HeldTransport, work: Callable[[], None]) -> None:
        """Call `work` now or in a later iteration, unless `transport` closes before; until then the transport is not read."""
        if self._left == self._most:
            asyncio.get_running_loop().call_soon(self._begin_iteration)
        if self._left:
            self._left -= 1
            work()
        else:
            transport.hold("iteration")
            self._waiting.append((transport, work))

    def _begin_iteration(self) -> None:
        self._left = self._most
        while self._waiting and self._left:
            transport, work = self._waiting.popleft()
            if not transport.is_closing():
                transport.release("iteration")
                self.run(transport, work)


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of each connection, and what all connections of a server share."""

    max_connections: int = 4096
    head_timeout_s: float = 10.0
    write_timeout_s: float = 20.0
    discard_rate: ByteRate = field(default_factory=ByteRate)
    first_data: IterationLimit = field(default_factory=IterationLimit)  # of each connection
    open: OpenConnections = field(default_factory=OpenConnections)
