import asyncio
import time
from functools import partial

import pytest

from app.serving.http.connections import HeldTransport, ReadScheduler

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


class Seconds:
    """A rate at which each byte takes a second."""

    def delay(self, size):
        return size


@pytest.fixture
def recorded():
    return RecordedTransport()


@pytest.fixture
def held(recorded):
    return HeldTransport(recorded)


def test_a_longer_pause_is_not_ended_by_a_shorter_one_before_it(recorded, held):
    """A body that is discarded faster than allowed pauses its connection again and again."""

    async def hold_twice():
        held.limit(Seconds(), 0.01)
        held.limit(Seconds(), 3600)
        await asyncio.sleep(0.1)
        return recorded.is_read

    assert not asyncio.run(hold_twice())


def test_a_pause_ends(recorded, held):
    async def hold_and_wait():
        held.limit(Seconds(), 0.01)
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


def connections(count, **limits):
    """Connections that have just been made: their reads, what records each transport, and the transports."""
    recorded = [RecordedTransport() for _ in range(count)]
    transports = [HeldTransport(each) for each in recorded]
    reads = ReadScheduler(**limits)
    for transport in transports:
        reads.begin_wait(transport)
    return reads, recorded, transports


def refuse(problem):
    raise AssertionError(problem)


def test_each_iteration_parses_the_data_of_a_few_connections():
    """The newest first. A connection that waits is not read, and one that closes is left out."""
    served = []

    async def come_at_once():
        reads, recorded, transports = connections(7, parsed=2)
        for number, transport in enumerate(transports):
            reads.parse(transport, partial(served.append, number), refuse, 1)
        transports[3].close()
        for expected in ([0, 1], [0, 1, 6, 5], [0, 1, 6, 5, 4, 2]):
            assert served == expected
            assert {number for number in range(7) if recorded[number].is_read and number != 3} == set(expected)
            await asyncio.sleep(0)
        reads.parse(transports[0], lambda: served.append("later"), refuse, 1)
        assert served[-1] == "later"

    asyncio.run(come_at_once())


@pytest.mark.parametrize(("size", "read"), [(1, 4), (64 * 1024, 2), (256 * 1024, 1)])
def test_each_iteration_reads_a_few_connections(size, read):
    """Fewer that have sent much. The others are not read before the next one."""

    async def come_at_once():
        reads, recorded, transports = connections(9, read=4)
        for number, transport in enumerate(transports):
            if not recorded[number].is_read:
                return number
            reads.parse(transport, lambda: None, refuse, size)
            reads.end_wait(transport)  # its request is complete
        return len(transports)

    assert asyncio.run(come_at_once()) == read


def test_connections_that_were_not_read_are_read_in_turn():
    """In each iteration the newest of the new ones, and the bodies that were not read for the longest time."""
    new, bodies = range(2, 6), range(6, 10)

    async def come_at_once():
        reads, recorded, transports = connections(10, read=2)
        for number in bodies:
            transports[number].is_new = False

        def reading():
            return {number for number in (*new, *bodies) if recorded[number].is_read}

        def read(*numbers):
            for number in numbers:
                reads.parse(transports[number], lambda: None, refuse, 1)

        read(0, 1)
        seen = [reading()]
        for _ in range(2):
            await asyncio.sleep(0)
            seen.append(reading())
        read(5, 6)  # now none is read
        seen.append(reading())
        await asyncio.sleep(0)
        seen.append(reading())
        reads.end_wait(transports[9])  # it is closed
        seen.append(recorded[9].is_read)
        return seen

    assert asyncio.run(come_at_once()) == [set(), {5, 6}, {5, 6, 4, 7}, set(), {4, 8}, True]


def test_what_follows_of_a_body_is_parsed_at_once():
    """Only the first requests of connections wait for each other; a connection that waits already keeps its place."""
    parsed = []

    async def come_at_once():
        reads, recorded, transports = connections(3, parsed=1, read=2)
        transports[2].is_new = False
        for number in (0, 1):
            reads.parse(transports[number], partial(parsed.append, number), refuse, 1)
        assert not recorded[2].is_read
        reads.begin_wait(transports[2])
        assert not recorded[2].is_read
        await asyncio.sleep(0)
        reads.parse(transports[2], partial(parsed.append, 2), refuse, 1)

    asyncio.run(come_at_once())
    assert parsed == [0, 1, 2]


def test_connections_that_wait_hold_a_limited_amount_of_data():
    """Beyond it those that have waited longest are turned away; the others, and later ones, are served."""
    events = []

    async def come_at_once():
        reads, _, transports = connections(5, parsed=1, max_bytes=100)
        transports[1].close()
        for number, transport in enumerate(transports[:4]):
            reads.parse(transport, partial(events.append, number), partial(refused, number), 60)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        reads.parse(transports[4], partial(events.append, 4), refuse, 60)

    def refused(number, problem):
        events.append((number, problem.status))

    asyncio.run(come_at_once())
    assert events == [0, (2, 503), 3, 4]  # 1 has closed


def test_a_connection_that_comes_later_does_not_wait_for_a_crowd():
    served = []

    async def come_later():
        reads, _, [*transports, later] = connections(6, parsed=1)
        for number, transport in enumerate(transports):
            reads.parse(transport, partial(served.append, number), refuse, 1)
        await asyncio.sleep(0)
        reads.parse(later, partial(served.append, "later"), refuse, 1)
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(come_later())
    assert served == [0, 4, "later", 3, 2, 1]


def test_connections_wait_although_the_parsing_of_one_fails():
    served = []

    async def come_at_once():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: served.append(type(context["exception"])))
        reads, _, transports = connections(3, parsed=1)
        for number, transport in enumerate(transports):
            reads.parse(transport, (lambda: [].pop()) if number == 2 else partial(served.append, number), refuse, 1)
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
