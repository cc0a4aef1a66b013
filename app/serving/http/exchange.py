"""Whole answers on a connection, past ASGI's messages."""

from asyncio import Transport

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.serving.http.limits import Header

EXCHANGE = "oddigit.exchange"  # the extension of an ASGI scope that holds its Exchange


def write(transport: Transport, status: int, headers: list[Header], body: bytes, *, stays: bool) -> None:
    """Write an answer, and close the connection where it does not stay."""
    if not stays:
        headers.append((b"connection", b"close"))
    lines = [STATUS_LINE[status], *(part for name, value in headers for part in (name, b": ", value, b"\r\n")), b"\r\n", body]
    transport.write(b"".join(lines))
    if not stays:
        transport.close()


class Exchange:
    """A request and its answer past ASGI's messages, of which taking a body and giving an answer need several each."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def complete(self) -> bool:
        """Whether the request has arrived to its last byte: to receive it is not to wait."""
        return not self._cycle.more_body

    def answer(self, status: int, headers: list[Header], body: bytes) -> bool:
        """Give a whole answer with these headers and the server's own. False where it has to be sent as usual: the client is
        slow to read, or the request is not over."""
        cycle = self._cycle
        if cycle.flow.write_paused or cycle.more_body or cycle.response_started:
            return False
        cycle.disconnected |= cycle.transport.is_closing()
        if not cycle.disconnected:
            cycle.response_started = cycle.response_complete = True
            write(cycle.transport, status, cycle.default_headers + headers, body, stays=cycle.keep_alive)
            cycle.message_event.set()
            cycle.on_response()
        return True
