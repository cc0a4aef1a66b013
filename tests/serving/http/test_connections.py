import asyncio
import time
from functools import partial

import pytest

from app.serving.http.connections import HeldTransport, IterationLimit

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


def test_each_iteration_gives_a_few_connections_their_turn():
    """The newest first; those that wait are not read, and those that close are left out."""
    recorded = [RecordedTransport() for _ in range(7)]
    transports = [HeldTransport(each) for each in recorded]
    served = []

    async def come_at_once():
        limit = IterationLimit(2)
        for number, transport in enumerate(transports):
            limit.run(transport, partial(served.append, number), refuse)
        transports[3].close()
        for expected in ([0, 1], [0, 1, 6, 5], [0, 1, 6, 5, 4, 2]):
            assert served == expected
            assert {number for number in range(7) if recorded[number].is_read and number != 3} == set(expected)
            await asyncio.sleep(0)
        limit.run(transports[0], lambda: served.append("later"), refuse)
        assert served[-1] == "later"

    asyncio.run(come_at_once())


def refuse(problem):
    raise AssertionError(problem)


def test_connections_that_wait_hold_a_limited_amount_of_data():
    """Beyond it those that have waited longest are turned away; the others, and later ones, are served."""
    events = []

    async def come_at_once():
        limit, transports = IterationLimit(1, max_bytes=100), [HeldTransport(RecordedTransport()) for _ in range(5)]
        transports[1].close()
        for number, transport in enumerate(transports[:4]):
            limit.run(transport, partial(events.append, number), partial(refused, number), 60)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        limit.run(transports[4], partial(events.append, 4), refuse, 60)

    def refused(number, problem):
        events.append((number, problem.status))

    asyncio.run(come_at_once())
    assert events == [0, (2, 503), 3, 4]  # 1 has closed


def test_a_connection_that_comes_later_does_not_wait_for_a_crowd():
    served = []

    async def come_later():
        limit, transport = IterationLimit(1), HeldTransport(RecordedTransport())
        for number in range(5):
            limit.run(transport, partial(served.append, number), refuse)
        await asyncio.sleep(0)
        limit.run(transport, partial(served.append, "later"), refuse)
        for _ in range(5):
            await asyncio.sleep(0)

    asyncio.run(come_later())
    assert served == [0, 4, "later", 3, 2, 1]


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
