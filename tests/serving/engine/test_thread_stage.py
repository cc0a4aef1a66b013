"""Threads beside the event loop: bounded queues, deadlines within work, and the pace."""

import asyncio
import os
import sys
import threading

import pytest

from app.serving.engine import thread_stage
from app.serving.engine.admission import Overloaded, Pace, WorkQueue
from app.serving.engine.thread_stage import ThreadStage


def test_a_queue_counts_seconds_and_not_jobs():
    """An empty queue takes any work; then it refuses while the accepted work takes longer than the limit."""
    queue = WorkQueue(servers=2, max_wait_s=1.0)
    with queue.reserve(50.0):
        with pytest.raises(Overloaded) as refused, queue.reserve(0.001):
            pass
        assert refused.value.retry_after == 25
    with queue.reserve(0.5), queue.reserve(1.0), queue.reserve(1.0), pytest.raises(Overloaded):
        queue.check()
    queue.check()
    assert queue.expected_wait_s == 0


def test_a_queue_counts_the_seconds_that_work_really_takes():
    """After work that took ten times as long as expected, ten times less work is accepted."""
    queue = WorkQueue(servers=1, max_wait_s=1.0)
    with queue.reserve(0.5):
        queue.check()
        queue.record(5.0, 50.0)
        assert queue.expected_wait_s == pytest.approx(5.0, rel=0.1)
        with pytest.raises(Overloaded):
            queue.check()


def test_the_pace_follows_measurements_and_forgets_them():
    """Work that took ten times as long as expected counts; seconds later it hardly does."""
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    assert pace.ratio == 1
    pace.record(1.0, 10.0)
    assert pace.ratio > 8
    now[0] += 30
    assert pace.ratio < 1.1
    for _ in range(20):
        pace.record(1.0, 0.5)
    assert pace.ratio < 0.6


def run(question, **options):
    """What `question`, a function of a stage at work, comes to."""

    async def ask():
        stage = ThreadStage("test", **{"deadline_s": 10.0, **options})
        try:
            return await question(stage, asyncio.get_running_loop())
        finally:
            stage.close()

    return asyncio.run(ask())


def test_work_is_done_on_a_thread_with_its_arguments():
    """The event loop's own thread is another."""

    async def question(stage, loop):
        def work(deadline, *given, **named):
            return threading.get_ident(), given, named

        return await stage.run(0.1, loop.time() + 5, work, 1, a=2)

    thread, given, named = run(question)
    assert thread != threading.get_ident()
    assert (given, named) == ((1,), {"a": 2})


def test_work_that_checks_its_deadline_ends_at_it():
    """Long work raises TimeoutError from `check`; work whose deadline has passed is not begun."""

    async def question(stage, loop):
        began = []

        def forever(deadline):
            began.append(True)
            while True:
                deadline.check()

        for due in (loop.time() + 0.5, loop.time() - 1):
            with pytest.raises(TimeoutError):
                await stage.run(0.1, due, forever)
        return len(began)

    assert run(question) == 1


def test_a_full_stage_refuses_more_work():
    """While expensive work runs, more is refused; afterwards the stage accepts again."""

    async def question(stage, loop):
        release = threading.Event()
        first = asyncio.create_task(stage.run(100.0, loop.time() + 60, lambda deadline: release.wait(30)))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await stage.run(0.1, loop.time() + 60, lambda deadline: None)
        release.set()
        await first
        return await stage.run(0.1, loop.time() + 60, lambda deadline: "done")

    assert run(question) == "done"


def test_a_full_stage_continues_requests_that_it_has_begun():
    """What was done for them before would be lost."""

    async def question(stage, loop):
        release = threading.Event()
        first = asyncio.create_task(stage.run(100.0, loop.time() + 60, lambda deadline: release.wait(30)))
        await asyncio.sleep(0)
        second = asyncio.create_task(stage.run_next(0.1, loop.time() + 60, lambda deadline: "done"))
        await asyncio.sleep(0)
        release.set()
        await first
        return await second

    assert run(question) == "done"


def test_the_event_loop_goes_before_work_on_a_thread(monkeypatch):
    """What is ready in the event loop when work checks its deadline is done when the check returns."""
    monkeypatch.setattr(thread_stage, "_MAX_TURN_S", 30)

    async def question(stage, loop):
        done = []

        def work(deadline):
            for number in range(100):
                loop.call_soon_threadsafe(done.append, number)
                deadline.check()
                assert done[-1] == number
            return len(done)

        return await stage.run(0.1, loop.time() + 60, work)

    assert run(question) == 100


@pytest.mark.skipif(sys.platform != "linux", reason="threads have priorities on Linux alone")
def test_a_thread_can_give_way_to_the_event_loop():
    """Its priority is lower; that of the event loop's thread stays."""

    def priority(*_):
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    async def question(stage, loop):
        return await stage.run(0.0, loop.time() + 60, priority), priority()

    own = priority()
    assert run(question) == (min(own + 5, 19), own)
