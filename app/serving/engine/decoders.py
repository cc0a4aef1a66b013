"""Processes that decode uploaded images. No upload can hold up the event loop, or another client's upload for long.

Two lanes lead to the processes. Requests whose decoding takes longer than a photograph's wait in the slow lane, which never
occupies the last process. The estimate from the header of a file is corrected by what similar files took lately.
"""

import asyncio
import logging
import math
import multiprocessing
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import NamedTuple

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from app.detection.imaging.decode import Preprocess
from app.detection.imaging.decoding_cost import HEAD_BYTES, decoding_seconds
from app.detection.imaging.errors import DecodingTooLong, ImageError
from app.detection.imaging.file_headers import sniff
from app.detection.imaging.preprocess import PreprocessedImage
from app.serving.engine import decode_worker
from app.serving.engine.admission import Overloaded, Pace, WorkQueue
from app.serving.engine.daemon_threads import start_daemon
from app.serving.engine.decode_worker import Decoded

logger = logging.getLogger(__name__)

_FAST_LANE_S = 0.1  # CPU seconds at most, by the estimate: a JPEG of 30 or a PNG of 4 million pixels
_FAST_CPU_LIMIT_S = 0.25  # for an image in the fast lane
_SLOW_CPU_LIMIT_S = 2.0  # 25 million pixels of PNG with transparency take 0.9 s
_REQUEST_CPU_LIMIT_S = 2.0  # for all images of a request; they take up to _FAST_CPU_LIMIT_S more
_LOST_AFTER_S = 30.0  # during which no process could be started
_MAX_WAIT = 0.3  # of the deadline: the longest wait in a lane before uploads are refused
# Exit code of a decoder process -> reason. pebble handles SIGTERM in its processes, and exits with the signal's number.
_STOP_REASONS = {-signal.SIGPROF: "cpu-limit", -signal.SIGKILL: "killed", signal.SIGTERM: "killed"}

Result = PreprocessedImage | ImageError


class DecodeOptions(NamedTuple):
    """How the images of a request are prepared; see `decode_image`."""

    preprocess: Preprocess
    size: int


class _File:
    """A file of a request, with the estimate from its header."""

    def __init__(self, data: bytes, max_pixels: int) -> None:
        self.data = data
        self.kind = "file"
        self.estimated_s = 1e-3  # CPU seconds; of a file that is refused
        with suppress(ImageError):  # which the process raises again
            self.kind = sniff(data)
            self.estimated_s = decoding_seconds(data[:HEAD_BYTES], max_pixels, len(data))

    @property
    def pace_key(self) -> tuple[str, int]:
        """File type and order of magnitude of the estimate. A wrong estimate changes that of files with the same key only."""
        return self.kind, math.frexp(self.estimated_s)[1]


class _Share:
    """What the images of one request may use."""

    def __init__(self, processes: int) -> None:
        self.left_s = _REQUEST_CPU_LIMIT_S  # CPU time
        self.places = asyncio.Semaphore(processes)  # in the queue at once: an image of another request waits for no more


class _Lane:
    """A queue to the processes, and how many images of it the processes may have at once."""

    def __init__(self, slots: int, servers: int, max_wait_s: float, cpu_limit_s: float) -> None:
        self.queue = WorkQueue(servers=servers, max_wait_s=max_wait_s)
        self.slots = asyncio.Semaphore(slots)
        self.cpu_limit_s = cpu_limit_s


class Decoders:
    """Decodes images in a pool of processes. Belongs to one event loop."""

    def __init__(self, *, processes: int, max_pixels: int, deadline_s: float, on_stopped: Callable[[str], None]) -> None:
        """`on_stopped` is called with "cpu-limit", "killed" or "crash" when a process ended while it decoded an image."""
        self._processes = processes
        self._max_pixels = max_pixels
        self._on_stopped = on_stopped
        slow = max(1, processes - 1)
        self._free = asyncio.Semaphore(processes)  # images wait here for a process, not in the pool behind a slow one
        self._fast = _Lane(processes, processes, _MAX_WAIT * deadline_s, _FAST_CPU_LIMIT_S)
        self._slow = _Lane(slow, slow, _MAX_WAIT * deadline_s, _SLOW_CPU_LIMIT_S)
        self._paces: defaultdict[tuple[str, int], Pace] = defaultdict(Pace)  # CPU seconds, of similar files
        self._timeouts: set[asyncio.Timeout] = set()  # of the requests in progress
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([decode_worker.__name__])
        self._pool = self._new_pool()
        self._broken_since: float | None = None  # loop time of the first of several failures without any work done between them
        self.is_lost = False  # True once processes cannot be started any more

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
        read = []
        for data in files:
            read.append(_File(data, self._max_pixels))
            if len(files) > 1:
                await asyncio.sleep(0)  # reading a header takes up to 1 ms
        cost_s, share = sum(map(self._expected_seconds, read)), _Share(self._processes)
        lane = self._fast if cost_s <= _FAST_LANE_S else self._slow
        with lane.queue.reserve(cost_s):
            async with asyncio.timeout_at(deadline) as timeout:
                self._timeouts.add(timeout)
                try:
                    jobs = (self._decode_one(file, lane, options, share) for file in read)
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
        _stop(self._pool)

    async def _decode_one(self, file: _File, lane: _Lane, options: DecodeOptions, share: _Share) -> Result:
        async with share.places:
            decoded = await self._run(lane, file, options, share)
            if decoded.image is None:
                with self._slow.queue.reserve(decoded.expected_s):
                    decoded = await self._run(self._slow, file, options, share)
        assert decoded.image is not None  # the slow lane decodes everything
        return decoded.image

    async def _run(self, lane: _Lane, file: _File, options: DecodeOptions, share: _Share) -> Decoded:
        most = _FAST_LANE_S if lane is self._fast else float("inf")
        async with lane.slots, self._free:
            cost_s = self._expected_seconds(file)
            if cost_s > most:
                return Decoded(None, cost_s, 0.0, 0.0)  # similar files took longer while this one waited
            if cost_s > share.left_s:
                raise DecodingTooLong("the images of this request take too long together; send fewer at once")
            limit_s = min(lane.cpu_limit_s, share.left_s + _FAST_CPU_LIMIT_S)
            share.left_s -= cost_s
            arguments = (file.data, options.preprocess, self._max_pixels, options.size, most, limit_s)
            try:
                decoded = await asyncio.wrap_future(self._schedule(arguments))
            except ProcessExpired as error:
                self._broken_since = None
                reason = _STOP_REASONS.get(error.exitcode or 0, "crash")
                self._on_stopped(reason)
                if reason == "killed":  # not by the image, as far as is known
                    raise Overloaded(1) from None
                share.left_s += cost_s - limit_s
                self._record(file, limit_s, failed=True)
                raise DecodingTooLong(f"decoding this {file.kind} took too long") from None
            except BrokenProcessPool as error:  # an idle process was killed, or none can be started
                self._record_broken_pool(error)
                raise Overloaded(1) from None
        self._broken_since = None
        share.left_s += cost_s - decoded.cpu_s
        lane.queue.record(decoded.cpu_s, decoded.wall_s)
        if decoded.image is not None:
            self._record(file, decoded.cpu_s, failed=isinstance(decoded.image, ImageError))
        return decoded

    def _record(self, file: _File, cpu_s: float, *, failed: bool) -> None:
        """Correct the estimates of similar files. The time of a file that failed is only a lower bound."""
        self._paces[file.pace_key].record(file.estimated_s, max(cpu_s, file.estimated_s) if failed else cpu_s)

    def _schedule(self, arguments: tuple[object, ...]) -> "ProcessFuture[Decoded]":
        if not self._pool.active:  # pebble gives a pool up when an idle process ends, and leaves the others running
            start_daemon(_stop, self._pool)
            self._pool = self._new_pool()
        try:
            return self._pool.schedule(decode_worker.decode_within, args=arguments)
        except RuntimeError as error:  # no process can be started, or the pool was given up since the line above
            raise BrokenProcessPool(str(error)) from None

    def _record_broken_pool(self, error: BrokenProcessPool) -> None:
        now = asyncio.get_running_loop().time()
        if self._broken_since is None:
            self._broken_since = now
            logger.warning("decoder processes have ended, or cannot be started: %s", error)
        self.is_lost = now - self._broken_since >= _LOST_AFTER_S

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(max_workers=self._processes, initializer=decode_worker.limit_process, context=self._context)

    def _expected_seconds(self, file: _File) -> float:
        """CPU seconds that decoding will take: the estimate, corrected by the pace of similar files."""
        return min(file.estimated_s * self._paces[file.pace_key].ratio, _SLOW_CPU_LIMIT_S)


def _stop(pool: ProcessPool) -> None:
    """Stop the processes of a pool, whatever they work on."""
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _result_or_raise(result: PreprocessedImage | BaseException) -> Result:
    if isinstance(result, BaseException) and not isinstance(result, ImageError):
        raise result
    return result
