"""Processes that decode uploaded images. No upload can hold up the event loop, or another client's upload for long.

Two lanes lead to the processes. Requests whose decoding takes longer than a photograph's wait in the slow lane, which never
occupies the last process. What the header of a file promises is corrected by what files of its type took lately.
"""

import asyncio
import multiprocessing
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from app.detection.imaging.decode import Preprocess
from app.detection.imaging.decoding_cost import HEAD_BYTES, decoding_seconds
from app.detection.imaging.errors import DecodingTooLong, ImageError
from app.detection.imaging.file_headers import sniff
from app.detection.imaging.preprocess import PreprocessedImage
from app.serving.engine import decode_worker
from app.serving.engine.admission import Overloaded, Pace, WorkQueue
from app.serving.engine.decode_worker import Decoded

_FAST_LANE_S = 0.1  # CPU seconds that the header may promise: a JPEG of 30 or a PNG of 4 million pixels
_FAST_CPU_LIMIT_S = 0.3  # for an image in the fast lane
_SLOW_CPU_LIMIT_S = 2.0  # 25 million pixels of PNG with transparency take 0.9 s
_MAX_WAIT = 0.3  # of the deadline: the longest wait in a lane before uploads are refused
_SIGPROF, _SIGKILL = -signal.SIGPROF, -signal.SIGKILL  # exit codes of decoder processes

Result = PreprocessedImage | ImageError


class DecodeOptions(NamedTuple):
    """How the images of a request are prepared; see `decode_image`."""

    preprocess: Preprocess
    size: int


class _Lane:
    """A queue to the processes, and how many images of it the processes may have at once."""

    def __init__(self, slots: int, servers: int, max_wait_s: float, max_jobs: int, cpu_limit_s: float) -> None:
        self.queue = WorkQueue(servers=servers, max_wait_s=max_wait_s, max_jobs=max_jobs)
        self.slots = asyncio.Semaphore(slots)
        self.cpu_limit_s = cpu_limit_s


class Decoders:
    """Decodes images in a pool of processes. Belongs to one event loop."""

    def __init__(
        self, *, processes: int, max_pixels: int, deadline_s: float, max_jobs: int, on_stopped: Callable[[str], None]
    ) -> None:
        """`on_stopped` is called with "cpu-limit", "killed" or "crash" when a process ended while it decoded an image."""
        self._processes = processes
        self._max_pixels = max_pixels
        self._on_stopped = on_stopped
        slow = max(1, processes - 1)
        self._free = asyncio.Semaphore(processes)  # images wait here for a process, not in the pool behind a slow one
        self._fast = _Lane(processes, processes, _MAX_WAIT * deadline_s, max_jobs, _FAST_CPU_LIMIT_S)
        self._slow = _Lane(slow, slow, _MAX_WAIT * deadline_s, max_jobs, _SLOW_CPU_LIMIT_S)
        self._paces: defaultdict[str, Pace] = defaultdict(Pace)  # CPU seconds, by file type
        self._timeouts: set[asyncio.Timeout] = set()  # of the requests in progress
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([decode_worker.__name__])
        self._pool = self._new_pool()

    async def start(self) -> None:
        """Start the processes, so that the first uploads do not wait for them."""
        await asyncio.gather(*(asyncio.wrap_future(self._pool.schedule(int)) for _ in range(self._processes)))

    def check(self) -> None:
        """Raise Overloaded if an image would be refused whatever its cost."""
        self._fast.queue.check()

    async def decode(self, files: Sequence[bytes], options: DecodeOptions, *, deadline: float) -> list[Result]:
        """Decode the files of one request. The result holds an image or the ImageError of each file, in order.

        Raises:
            Overloaded: the images would wait too long.
            TimeoutError: they were not decoded by `deadline`, a time of the event loop.
        """
        cost_s = sum(self._expected_seconds(data) for data in files)
        lane = self._fast if cost_s <= _FAST_LANE_S else self._slow
        with lane.queue.reserve(cost_s):
            async with asyncio.timeout_at(deadline) as timeout:
                self._timeouts.add(timeout)
                try:
                    jobs = (self._decode_one(data, lane, options) for data in files)
                    results = await asyncio.gather(*jobs, return_exceptions=True)
                finally:
                    self._timeouts.discard(timeout)
        return [_result_or_raise(result) for result in results]

    def finish_within(self, seconds: float) -> None:
        """Bring the deadlines of the requests in progress forward, so that none is later than in `seconds`."""
        latest = asyncio.get_running_loop().time() + seconds
        for timeout in self._timeouts:
            due = timeout.when()
            if due is not None and due > latest and not timeout.expired():
                timeout.reschedule(latest)

    def close(self) -> None:
        """Stop the processes, whatever they work on."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()

    async def _decode_one(self, data: bytes, lane: _Lane, options: DecodeOptions) -> PreprocessedImage:
        decoded = await self._run(lane, data, options)
        if decoded.image is None:
            with self._slow.queue.reserve(decoded.expected_s):
                decoded = await self._run(self._slow, data, options)
        assert decoded.image is not None  # the slow lane decodes everything
        return decoded.image

    async def _run(self, lane: _Lane, data: bytes, options: DecodeOptions) -> Decoded:
        kind = _kind(data)
        most = _FAST_LANE_S if lane is self._fast else float("inf")
        arguments = (data, options.preprocess, self._max_pixels, options.size, most, lane.cpu_limit_s)
        async with lane.slots, self._free:
            if lane is self._fast and (cost := self._expected_seconds(data)) > _FAST_LANE_S:
                return Decoded(None, cost, 0.0)  # files of this type took longer while this one waited
            started = time.perf_counter()
            try:
                decoded = await asyncio.wrap_future(self._schedule(arguments))
            except ProcessExpired as error:
                reason = {_SIGPROF: "cpu-limit", _SIGKILL: "killed"}.get(error.exitcode or 0, "crash")
                self._on_stopped(reason)
                self._paces[kind].record(self._promised_seconds(data), lane.cpu_limit_s)
                if reason == "killed":  # not by the image, as far as is known
                    raise Overloaded(1) from None
                raise DecodingTooLong(f"decoding this {kind} took too long") from None
            except BrokenProcessPool:  # an idle process was killed
                raise Overloaded(1) from None
            lane.queue.record(decoded.cpu_s, time.perf_counter() - started)  # processes of low priority wait for the processor
        self._paces[kind].record(decoded.expected_s, decoded.cpu_s)
        return decoded

    def _schedule(self, arguments: tuple[object, ...]) -> "ProcessFuture[Decoded]":
        if not self._pool.active:
            self._pool = self._new_pool()
        return self._pool.schedule(decode_worker.decode_within, args=arguments)

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(max_workers=self._processes, initializer=decode_worker.limit_process, context=self._context)

    def _expected_seconds(self, data: bytes) -> float:
        """CPU seconds that decoding will take, from the first bytes of the file and the pace of its type."""
        try:
            return min(self._promised_seconds(data) * self._paces[_kind(data)].ratio, _SLOW_CPU_LIMIT_S)
        except ImageError:
            return 1e-3  # the process raises the same error

    def _promised_seconds(self, data: bytes) -> float:
        return decoding_seconds(data[:HEAD_BYTES], self._max_pixels, len(data))


def _kind(data: bytes) -> str:
    try:
        return sniff(data)
    except ImageError:
        return "file"


def _result_or_raise(result: PreprocessedImage | BaseException) -> Result:
    if isinstance(result, BaseException) and not isinstance(result, ImageError):
        raise result
    return result
