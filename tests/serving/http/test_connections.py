import asyncio
import time
from functools import partial

import pytest

from app.serving.http.connections import HeldTransport, NewConnections

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class RecordedTransport(asyncio.Transport):
    """Records what is written, and whether it was closed."""

    def __init__(self):
        super().__init__()
        self.written, self.closed, self.is_read = [], False, True

    def write(self, data):
        self.written.append(data)

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        self.is_read = False

    def resume_reading(self):
        self.is_read = True


@pytest.fixture
def recorded():
    return RecordedTransport()


@pytest.fixture
def held(recorded):
    return HeldTransport(recorded)


def test_a_longer_pause_is_not_ended_by_a_shorter_one_before_it(recorded, held):
    """A body that is discarded faster than allowed pauses its connection again and again."""

    async def hold_twice():
        held.hold_for(0.01)
        held.hold_for(3600)
        await asyncio.sleep(0.1)
        return recorded.is_read

    assert not asyncio.run(hold_twice())


def test_a_pause_ends(recorded, held):
    async def hold_and_wait():
        held.hold_for(0.01)
        assert not recorded.is_read
        while not recorded.is_read:
            await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(hold_and_wait(), 30))


def test_a_head_is_sent_together_with_its_body(recorded, held):
    held.write(HEAD)
    assert recorded.written == []
    held.write(b"body")
    held.write(b"more")
    assert recorded.written == [HEAD + b"body", b"more"]


def test_each_response_has_its_own_head(recorded, held):
    for _ in range(2):
        held.write(HEAD)
        held.write(b"body")
    assert recorded.written == [HEAD + b"body"] * 2


def test_the_head_of_a_response_without_a_body_is_sent(recorded, held):
    held.write(HEAD)
    held.end_response()
    held.end_response()
    assert recorded.written == [HEAD]


def test_a_head_is_sent_before_the_connection_closes(recorded, held):
    held.write(HEAD)
    held.close()
    assert recorded.written == [HEAD]
    assert recorded.closed


@pytest.mark.parametrize("data", [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"body", b"body\r\n\r\n"])
def test_everything_else_is_sent_at_once(recorded, held, data):
    held.write(data)
    assert recorded.written == [data]


def new_connections(count, **limits):
    """Connections that have just been made: what limits them, what records each transport, and the transports."""
    recorded = [RecordedTransport() for _ in range(count)]
    transports = [HeldTransport(each) for each in recorded]
    new = NewConnections(**limits)
    for transport in transports:
        new.add(transport)
    return new, recorded, transports


def refuse(problem):
    raise AssertionError(problem)


def test_each_iteration_parses_the_data_of_a_few_new_connections():
    """The newest first; those that wait are not read, and those that close are left out."""
    served = []

    async def come_at_once():
        new, recorded, transports = new_connections(7, parsed=2)
        for number, transport in enumerate(transports):
            new.parse(transport, partial(served.append, number), refuse)
        transports[3].close()
        for expected in ([0, 1], [0, 1, 6, 5], [0, 1, 6, 5, 4, 2]):
            assert served == expected
            assert {number for number in range(7) if recorded[number].is_read and number != 3} == set(expected)
            await asyncio.sleep(0)
        new.parse(transports[0], lambda: served.append("later"), refuse)
        assert served[-1] == "later"

    asyncio.run(come_at_once())


def test_each_iteration_reads_a_few_new_connections():
    """The others are not read before the next one, the newest first, in the order in which they came."""

    async def come_at_once():
        new, recorded, transports = new_connections(9, read=2)
        for number in (0, 1):
            new.parse(transports[number], lambda: None, refuse)
            new.remove(transports[number])  # its request is complete
        reading = [{number for number in range(2, 9) if recorded[number].is_read}]
        for _ in range(3):
            await asyncio.sleep(0)
            reading.append({number for number in range(2, 9) if recorded[number].is_read})
        new.parse(transports[7], lambda: None, refuse)
        new.parse(transports[8], lambda: None, refuse)
        reading.append({number for number in range(2, 9) if recorded[number].is_read})
        await asyncio.sleep(0)
        reading.append({number for number in range(2, 9) if recorded[number].is_read})
        new.remove(transports[3])
        transports[2].close()
        new.remove(transports[2])
        reading.append(recorded[3].is_read)
        return reading

    assert asyncio.run(come_at_once()) == [set(), {7, 8}, {5, 6, 7, 8}, {3, 4, 5, 6, 7, 8}, set(), {7, 8}, True]


def test_connections_that_wait_hold_a_limited_amount_of_data():
    """Beyond it those that have waited longest are turned away; the others, and later ones, are served."""
    events = []

    async def come_at_once():
        new, _, transports = new_connections(5, parsed=1, max_bytes=100)
        transports[1].close()
        for number, transport in enumerate(transports[:4]):
            new.parse(transport, partial(events.append, number), partial(refused, number), 60)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        new.parse(transports[4], partial(events.append, 4), refuse, 60)

    def refused(number, problem):
        events.append((number, problem.status))

    asyncio.run(come_at_once())
    assert events == [0, (2, 503), 3, 4]  # 1 has closed


def test_a_connection_that_comes_later_does_not_wait_for_a_crowd():
    served = []

    async def come_later():
        new, _, [*transports, later] = new_connections(6, parsed=1)
        for number, transport in enumerate(transports):
            new.parse(transport, partial(served.append, number), refuse)
        await asyncio.sleep(0)
        new.parse(later, partial(served.append, "later"), refuse)
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(come_later())
    assert served == [0, 4, "later", 3, 2, 1]


def test_connections_wait_although_the_parsing_of_one_fails():
    served = []

    async def come_at_once():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: served.append(type(context["exception"])))
        new, _, transports = new_connections(3, parsed=1)
        for number, transport in enumerate(transports):
            new.parse(transport, (lambda: [].pop()) if number == 2 else partial(served.append, number), refuse)
        for _ in range(3):
            await asyncio.sleep(0)

    asyncio.run(come_at_once())
    assert served == [0, IndexError, 1]


def test_a_client_that_reads_slowly_is_cut_off_and_one_that_read_the_response_before_is_not():
    """The time for a response ends with it: what is read of it afterwards says nothing about the next."""
    aborted = []

    async def respond():
        recorded = RecordedTransport()
        recorded.abort = lambda: aborted.append(True)
        held = HeldTransport(recorded)
        held.start_write_timeout()
        held.end_response()
        held.extend_write_timeout()
        held.start_write_timeout()
        await asyncio.sleep(0.01)
        assert not aborted
        loop = asyncio.get_running_loop()
        loop.time = lambda: time.monotonic() + 21
        await asyncio.sleep(0.01)

    asyncio.run(respond())
    assert aborted
