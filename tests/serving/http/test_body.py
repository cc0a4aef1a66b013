import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from app.serving.errors import RequestTimeout, TooLarge, Unavailable
from app.serving.http import body as body_module
from app.serving.http.body import ByteBudget, ByteRate, LimitedReceive, RequestLimits, read_body
from app.serving.settings import read_settings

CHUNKS = st.lists(st.binary(max_size=40), min_size=1, max_size=8)


def sending(*chunks, ends=True):
    """An ASGI `receive` that sends these chunks, and then goes away, or says no more where the body does not end."""
    left = list(enumerate(chunks, start=1))

    async def receive():
        if left:
            number, chunk = left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": number < len(chunks) or not ends}
        if not ends:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    return receive


def limited(receive, *, budget=None, timeout_s=30.0):
    return LimitedReceive(receive, RequestLimits(budget or ByteBudget(2**20), ByteBudget(0), timeout_s))


def read(receive, *, limit=1000, **headers):
    named = {name.replace("_", "-").encode(): str(value).encode() for name, value in headers.items()}
    return asyncio.run(read_body(limited(receive), named, limit=limit))


def read_all(receive):
    """The size of a body that `receive` gives whole."""

    async def drain():
        while not receive.complete:
            await receive()
        return receive.received

    return asyncio.run(drain())


@given(CHUNKS)
def test_a_body_arrives_whole_however_it_is_cut(chunks):
    """The chunks come together in their order."""
    assert read(sending(*chunks)) == b"".join(chunks)


@given(CHUNKS)
def test_a_body_of_known_length_arrives_whole_however_it_is_cut(chunks):
    """Also where it is so long that it is not moved any more."""
    whole = b"".join(chunks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(body_module, "_GROWING_BYTES", 20)
        assert bytes(read(sending(*chunks), content_length=len(whole))) == whole


def test_a_long_body_takes_the_memory_that_it_sent():
    """A client that declares 500 MB and sends 3 MB."""
    limit = 500 * 10**6

    def resident_mib():
        return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) / 1024

    async def stop_in_the_middle():
        before = resident_mib()
        receive = limited(sending(*[bytes(2**20)] * 3, ends=False), budget=ByteBudget(limit))
        reading = asyncio.create_task(read_body(receive, {b"content-length": b"%d" % limit}, limit=limit))
        while receive.received < 3 * 2**20:
            await asyncio.sleep(0.01)
        assert resident_mib() < before + 20
        reading.cancel()

    asyncio.run(stop_in_the_middle())


@given(CHUNKS, st.integers(1, 320))
def test_the_limit_is_exact_however_the_body_is_cut(chunks, limit):
    """A body of exactly `limit` bytes is read; one more byte is refused, in whatever chunk it comes."""
    if sum(map(len, chunks)) <= limit:
        assert len(read(sending(*chunks), limit=limit)) <= limit
    else:
        with pytest.raises(TooLarge, match=f"{limit:,} bytes"):
            read(sending(*chunks), limit=limit)


@pytest.mark.parametrize("declared", ["1001", "2147483648", "9" * 40])
def test_a_declared_length_over_the_limit_is_refused_unread(declared):
    """Nothing is received when the header alone says too much."""

    async def receive():
        raise AssertionError("nothing should be received")

    with pytest.raises(TooLarge):
        read(receive, content_length=declared)


@pytest.mark.parametrize("declared", ["", "no number", "-5", "³"])
def test_a_declared_length_without_meaning_is_left_alone(declared):
    """The bytes that come are counted in any case."""
    assert read(sending(b"abc"), content_length=declared) == b"abc"


@pytest.mark.parametrize("chunks", [(), (b"half",), (b"two", b"chunks")])
def test_a_client_that_stops_sending_meets_the_timeout(chunks):
    """However much of the body has been received."""
    receive = limited(sending(*chunks, ends=False), timeout_s=0.02)
    with pytest.raises(RequestTimeout, match=r"0\.02 seconds"):
        asyncio.run(read_body(receive, {}, limit=100))


def test_the_timeout_is_on_progress_and_not_on_the_whole_body():
    """A body that takes twice the timeout arrives, because something of it arrives all the time."""

    async def slow():
        await asyncio.sleep(0.1)
        return {"type": "http.request", "body": b"x", "more_body": len(sent) < 9 and not sent.append(1)}

    sent = []
    assert asyncio.run(read_body(limited(slow, timeout_s=0.5), {}, limit=100)) == b"x" * 10


def test_a_body_that_trickles_is_not_waited_for(monkeypatch):
    """A client may be slow for a while; then it has to send more than the least rate."""
    monkeypatch.setattr(body_module, "_SLOW_S", 0.3)

    async def trickling():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x" * size, "more_body": True}

    size = 1  # 50 bytes a second
    with pytest.raises(RequestTimeout, match="less than 4,096 bytes a second"):
        asyncio.run(asyncio.wait_for(read_body(limited(trickling), {}, limit=10**6), 5))
    size = 400  # 20 KB a second: until the limit of the body
    with pytest.raises(TooLarge):
        asyncio.run(asyncio.wait_for(read_body(limited(trickling), {}, limit=15_000), 5))


def test_large_bodies_share_a_budget():
    """A body beyond the budget is refused, small bodies need none of it, and what was reserved is given back."""
    budget, large = ByteBudget(100_000), bytes(110_000)
    first, second = (limited(sending(large), budget=budget) for _ in range(2))
    asyncio.run(first())
    with pytest.raises(Unavailable):
        asyncio.run(second())
    asyncio.run(limited(sending(bytes(16_000)), budget=budget)())
    first.release()
    second.release()
    assert budget.acquire(100_000)
    assert not budget.acquire(1)


def test_a_body_that_is_larger_than_the_budget_is_too_large():
    """To try again later would not help."""
    receive = limited(sending(b"x" * 60_000, b"x" * 60_000), budget=ByteBudget(100_000))
    with pytest.raises(TooLarge, match="100,000 bytes"):
        read_all(receive)
    settings = read_settings(
        {"ODDIGIT_MAX_ARRAY_BYTES": "2000", "ODDIGIT_MAX_BODIES_BYTES": "1000", "ODDIGIT_MAX_BODY_BYTES": "10"}
    )
    assert (settings.array_limit, settings.body_limit) == (1000, 10)


def test_large_heads_whose_bodies_are_awaited_take_a_limited_amount_of_memory():
    """Thousands of such requests would fill it; a small head needs none of it, and each gives back what it took."""
    large, small = [(b"a", b"x" * 300)] * 90, [(b"host", b"x" * 1000)]

    async def wait_together(*heads):
        async def never():
            await asyncio.sleep(60)

        async def wait(headers):
            receive = LimitedReceive(never, limits, headers)
            try:
                await receive()
            finally:
                receive.release()

        return [type(error) for error in await asyncio.gather(*map(wait, heads), return_exceptions=True)]

    limits = RequestLimits(ByteBudget(0), ByteBudget(0), 0.01, heads=ByteBudget(50_000))
    for _ in range(2):
        outcomes = asyncio.run(wait_together(large, large, small))
        assert outcomes == [RequestTimeout, Unavailable, RequestTimeout]


def test_nothing_is_timed_once_the_body_is_complete():
    """An endpoint may wait for the disconnect as long as it likes."""

    async def wait():
        receive = limited(sending(b"all"), timeout_s=0.001)
        await receive()
        return await receive()

    assert asyncio.run(wait())["type"] == "http.disconnect"


def test_a_rate_says_how_long_to_wait():
    """Within the burst not at all, then for what was read, and after a pause within the burst again."""
    now = [10.0]
    rate = ByteRate(rate=1000, burst=200, clock=lambda: now[0])
    assert [rate.delay(size) for size in (150, 50, 50, 100)] == pytest.approx([0, 0, 0.05, 0.15])
    now[0] = 10.15
    assert rate.delay(20) == pytest.approx(0.02)
    now[0] = 100.0
    assert [rate.delay(200), rate.delay(100)] == pytest.approx([0, 0.1])


def test_the_wait_for_the_rate_is_limited():
    """A client that sends much and leaves, again and again, must not keep others from sending."""
    rate = ByteRate(rate=1000, burst=200, clock=lambda: 10.0)
    for _ in range(100):
        rate.delay(1000)
    assert rate.delay(1) <= 0.25


def test_a_client_that_leaves_is_noticed():
    """A connection closed before or in the middle of the body is no body."""
    for chunks in ((), (b"half",)):
        left = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks] + [{"type": "http.disconnect"}]

        async def receive(left=left):
            return left.pop(0)

        with pytest.raises(ClientDisconnect):
            read(receive)
