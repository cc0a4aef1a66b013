"""Decoder processes: limits of CPU time, killed processes, lanes, and the order of results."""

import asyncio
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from strokes import encoded, png, stroke_images

from app.detection.imaging.decode import decode_image
from app.detection.imaging.errors import DecodingTooLong, UndecodableImage
from app.detection.imaging.preprocess import PreprocessedImage
from app.serving.engine.admission import Overloaded
from app.serving.engine.decoders import DecodeOptions, Decoders

OPTIONS = DecodeOptions("auto", 28)
PHOTO = png(stroke_images(1, seed=0, size=300)[0])


def padded_jpeg(length=9_000_000):
    """A JPEG with megabytes of fill bytes, which Pillow skips one by one in Python: more than its header promises."""
    whole = encoded(Image.new("L", (64, 64)), "JPEG")
    return whole[:2] + b"\xff" * length + whole[2:]


@asynccontextmanager
async def decoders(stopped=None, processes=2, deadline_s=30.0):
    found = Decoders(
        processes=processes,
        max_pixels=25_000_000,
        deadline_s=deadline_s,
        max_jobs=100,
        on_stopped=(stopped if stopped is not None else []).append,
    )
    await found.start()
    try:
        yield found
    finally:
        await asyncio.to_thread(found.close)


async def decode(found, *files, seconds=30.0):
    return await found.decode(files, OPTIONS, deadline=asyncio.get_running_loop().time() + seconds)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def decoder_processes():
    """The ids of the processes that decode: children of this process's fork server, and of no other server's."""
    tasks = [task.name for task in Path("/proc/self/task").iterdir()]
    own = [child for task in tasks for child in map(int, Path(f"/proc/self/task/{task}/children").read_text().split())]
    servers = [child for child in own if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return [process for server in servers for process in children(server)]


def test_results_are_those_of_decode_image_and_keep_their_order():
    """Images and errors come back as `decode_image` gives them."""
    files = [PHOTO, b"no image", png(stroke_images(1, seed=1)[0])]

    async def run():
        async with decoders() as found:
            return await decode(found, *files)

    first, second, third = asyncio.run(run())
    assert isinstance(second, UndecodableImage)
    for result, data in ((first, PHOTO), (third, files[2])):
        expected = decode_image(data)
        assert np.array_equal(result.image, expected.image)
        assert result.preprocess == expected.preprocess


def test_an_image_that_takes_too_long_ends_its_process_and_no_other_work():
    """The sender gets DecodingTooLong; an image that was sent at the same time and one that is sent later are decoded."""
    stopped = []

    async def run():
        async with decoders(stopped) as found:
            slow, photo = await asyncio.gather(decode(found, padded_jpeg(30_000_000)), decode(found, PHOTO))
            return slow[0], photo[0], (await decode(found, PHOTO))[0]

    slow, photo, later = asyncio.run(run())
    assert isinstance(slow, DecodingTooLong)
    assert isinstance(photo, PreprocessedImage)
    assert isinstance(later, PreprocessedImage)
    assert stopped == ["cpu-limit"]


def test_the_expected_cost_of_a_file_type_follows_what_its_files_took():
    """After a file that took longer than its header promised, the next of its type is expected to take longer too."""

    async def run():
        async with decoders() as found:
            before = found._expected_seconds(padded_jpeg())
            (result,) = await decode(found, padded_jpeg())
            return before, result, found._expected_seconds(padded_jpeg())

    before, result, after = asyncio.run(run())
    assert isinstance(result, DecodingTooLong)
    assert after > 2 * before


@pytest.mark.parametrize("which", ["idle", "all idle"])
def test_killed_idle_processes_are_replaced(which):
    """After a kill the next images are refused at most for a moment, then decoded."""

    async def run():
        async with decoders() as found:
            for process in decoder_processes()[: 1 if which == "idle" else None]:
                os.kill(process, signal.SIGKILL)
            for _ in range(100):
                try:
                    return (await decode(found, PHOTO))[0]
                except Overloaded:
                    await asyncio.sleep(0.1)
            return None

    assert isinstance(asyncio.run(run()), PreprocessedImage)


def test_work_is_refused_when_it_would_wait_too_long():
    """An empty lane takes any request; a full one refuses the next, and says when to come back. The other lane accepts work."""

    async def run():
        async with decoders(deadline_s=0.5) as found:
            first = asyncio.create_task(decode(found, *[PHOTO] * 50))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as refused:
                await decode(found, *[PHOTO] * 50)
            (photo,) = await decode(found, PHOTO)
            return refused.value.retry_after, [photo, *await first]

    retry_after, results = asyncio.run(run())
    assert retry_after >= 1
    assert all(isinstance(result, PreprocessedImage) for result in results)


def test_the_wait_counts_the_time_that_processes_wait_for_the_processor():
    """Decoder processes that get little of the processor's time make the expected wait longer than their CPU time."""

    async def run():
        async with decoders(processes=1) as found:
            (process,) = decoder_processes()
            waiting = asyncio.create_task(decode(found, *[PHOTO] * 20))
            for _ in range(20):  # stopped for nine tenths of the time
                os.kill(process, signal.SIGSTOP)
                await asyncio.sleep(0.045)
                os.kill(process, signal.SIGCONT)
                await asyncio.sleep(0.005)
            queue = found._fast.queue
            ratio = queue.expected_wait_s / queue._seconds
            await waiting
            return ratio

    assert asyncio.run(run()) > 2


def test_work_in_progress_can_be_given_less_time():
    """After finish_within, a request whose deadline is later raises TimeoutError at the new one."""

    async def run():
        async with decoders() as found:
            slow = asyncio.create_task(decode(found, padded_jpeg(30_000_000)))
            await asyncio.sleep(0)
            found.finish_within(0.1)
            with pytest.raises(TimeoutError):
                await slow

    asyncio.run(run())


def test_a_deadline_frees_the_process():
    """TimeoutError at the deadline; the process that was busy is replaced."""

    async def run():
        async with decoders(processes=1) as found:
            with pytest.raises(TimeoutError):
                await decode(found, padded_jpeg(30_000_000), seconds=0.3)
            return (await decode(found, PHOTO))[0]

    assert isinstance(asyncio.run(run()), PreprocessedImage)


def test_memory_of_a_process_is_limited():
    """An allocation above the limit fails in the process; the limit leaves room for the largest accepted image."""
    code = "from app.serving.engine.decode_worker import limit_process; limit_process(); bytearray({}); print('allocated')"
    small, large = (
        subprocess.run([sys.executable, "-c", code.format(size << 20)], capture_output=True, text=True) for size in (210, 500)
    )
    assert small.stdout == "allocated\n"
    assert "MemoryError" in large.stderr
