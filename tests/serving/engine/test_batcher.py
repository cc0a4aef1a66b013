import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serving.engine.batcher import Batcher


def recording(*, max_batch_size=8):
    """A batcher of numbers that come back doubled, and the batches it ran."""
    batches = []

    def run(jobs):
        batches.append(list(jobs))
        return [2 * job for job in jobs]

    return Batcher(run, max_batch_size=max_batch_size), batches


async def submit_all(batcher, jobs, size=None):
    """The results of the jobs, which are numbers and take their own size unless another is given."""
    return await asyncio.gather(*(batcher.submit(job, size or job) for job in jobs), return_exceptions=True)


@given(st.lists(st.integers(1, 12), max_size=30), st.integers(1, 20))
def test_every_job_gets_its_own_result_in_batches_that_fit(jobs, limit):
    """Results find their jobs; batches keep the order and the limit, but for a single job that is larger than it."""
    batcher, batches = recording(max_batch_size=limit)
    assert asyncio.run(submit_all(batcher, jobs)) == [2 * job for job in jobs]
    assert [job for batch in batches for job in batch] == jobs
    assert all(sum(batch) <= limit or len(batch) == 1 for batch in batches)
    assert all(sum(one) + other[0] > limit for one, other in pairwise(batches))
    assert batcher.depth == 0


def test_jobs_that_wait_together_go_together():
    """What is submitted in one round of the loop is one batch, without any waiting."""
    batcher, batches = recording()
    asyncio.run(submit_all(batcher, [1, 2, 3]))
    assert batches == [[1, 2, 3]]


def test_several_jobs_wait_for_those_that_follow_at_once():
    """Jobs that are submitted in the next iterations of the loop join a batch of several; a job that is alone does not wait."""

    async def submit_later(batcher, job, *, iterations):
        for _ in range(iterations):
            await asyncio.sleep(0)
        return await batcher.submit(job, job)

    def batches_of(iterations, *, max_batch_size=8):
        async def submit():
            batcher, batches = recording(max_batch_size=max_batch_size)
            await asyncio.gather(*(submit_later(batcher, 1, iterations=count) for count in iterations))
            return [len(batch) for batch in batches]

        return asyncio.run(submit())

    assert batches_of([0, 0, 1, 2, 4]) == [5]
    assert batches_of([0, 0, 9, 9]) == [2, 2]
    assert batches_of([0, 0, 1, 2, 3], max_batch_size=3) == [3, 1, 1]
    assert batches_of([0, 2]) == [1, 1]


def test_a_failing_batch_fails_its_own_jobs_alone():
    """The error reaches everyone in the batch, and nobody else; the next batch runs."""

    def run(jobs):
        if 3 in jobs:
            raise ZeroDivisionError("three")
        return jobs

    batcher = Batcher(run, max_batch_size=2)
    results = asyncio.run(submit_all(batcher, [1, 2, 3, 4, 5], size=1))
    assert results[:2] == [1, 2]
    assert [type(result) for result in results[2:4]] == [ZeroDivisionError] * 2
    assert results[4] == 5


def test_a_batcher_works_on_after_a_failure():
    """One bad batch does not stop those that come later."""

    def run(jobs):
        return [1 // job for job in jobs]

    async def both():
        batcher = Batcher(run, max_batch_size=2)
        with pytest.raises(ZeroDivisionError):
            await batcher.submit(0, 1)
        return await batcher.submit(1, 1)

    assert asyncio.run(both()) == 1


def test_jobs_whose_client_has_gone_are_dropped():
    """A cancelled job takes no room in a batch and troubles nobody."""

    async def three():
        batcher, batches = recording(max_batch_size=2)
        futures = [batcher.submit(1, 1) for _ in range(5)]
        assert batcher.depth == 5
        for future in futures[1:4]:
            future.cancel()
        results = await asyncio.gather(*futures, return_exceptions=True)
        return results, batches

    results, batches = asyncio.run(three())
    assert [results[0], results[4]] == [2, 2]
    assert all(isinstance(result, asyncio.CancelledError) for result in results[1:4])
    assert batches == [[1, 1]]


def test_all_jobs_cancelled_leaves_a_batcher_that_works():
    """After a round in which everyone left, the next job is answered."""

    async def one_after_none():
        batcher, batches = recording()
        batcher.submit(1, 1).cancel()
        await asyncio.sleep(0)
        return await batcher.submit(3, 3), batches

    assert asyncio.run(one_after_none()) == (6, [[3]])


def test_the_loop_turns_between_batches():
    """Between two batches the event loop serves others, however many jobs wait."""
    order = []

    async def witness():
        for _ in range(3):
            order.append("loop")
            await asyncio.sleep(0)

    async def both():
        def run(jobs):
            order.append("batch")
            return jobs

        batcher = Batcher(run, max_batch_size=1)
        await asyncio.gather(submit_all(batcher, range(3), size=1), witness())

    asyncio.run(both())
    assert "batch batch" not in " ".join(order[:-1])


def test_jobs_past_their_deadline_are_refused_and_take_no_room():
    """What would be answered too late is not run at all; what is in time is."""

    async def some():
        batcher, batches = recording(max_batch_size=2)
        now = asyncio.get_running_loop().time()
        results = await asyncio.gather(
            *(batcher.submit(1, 1, deadline=now + shift) for shift in (-1, 60, -1, 60)), return_exceptions=True
        )
        return results, batches, batcher.depth

    results, batches, depth = asyncio.run(some())
    assert [type(result) for result in results] == [TimeoutError, int, TimeoutError, int]
    assert batches == [[1, 1]]
    assert depth == 0
