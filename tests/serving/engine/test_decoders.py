"""Decoder processes: limits of CPU time, killed processes, lanes, and the order of results."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from live import ROOT
from PIL import Image
from strokes import encoded, png, stroke_images

from app.detection.imaging.decode import decode_image
from app.detection.imaging.errors import DecodingTooLong, UndecodableImage
from app.detection.imaging.preprocess import PreprocessedImage
from app.serving.engine.admission import Overloaded
from app.serving.engine.decoders import DecodeOptions, Decoders, _File

OPTIONS = DecodeOptions("auto", 28)
PHOTO = png(stroke_images(1, seed=0, size=300)[0])


LARGE = encoded(Image.new("RGBA", (5000, 5000)), "PNG")  # takes 0.7 s


@asynccontextmanager
async def decoders(stopped=None, processes=2, deadline_s=30.0):
    found = Decoders(
        processes=processes,
        max_pixels=25_000_000,
        deadline_s=deadline_s,
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
    own = []
    for task in tasks:
        with suppress(FileNotFoundError):  # a thread that has ended since
            own += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
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
            found._slow.cpu_limit_s = 0.1
            slow, photo = await asyncio.gather(decode(found, LARGE), decode(found, PHOTO))
            return slow[0], photo[0], (await decode(found, PHOTO))[0]

    slow, photo, later = asyncio.run(run())
    assert isinstance(slow, DecodingTooLong)
    assert isinstance(photo, PreprocessedImage)
    assert isinstance(later, PreprocessedImage)
    assert stopped == ["cpu-limit"]


def test_a_process_that_is_told_to_end_is_not_the_images_fault():
    """A service manager may send SIGTERM to all processes at once: the image can be sent again."""
    stopped = []

    async def run():
        async with decoders(stopped, processes=1) as found:
            (process,) = decoder_processes()
            task = asyncio.create_task(decode(found, LARGE))
            await begun(task, process)
            os.kill(process, signal.SIGTERM)
            with pytest.raises(Overloaded):
                await task

    asyncio.run(run())
    assert stopped == ["killed"]


async def begun(task, process):
    """Wait until the process works on the task, or the task has ended."""
    before = cpu_ticks(process)
    while not task.done() and cpu_ticks(process) < before + 10:
        await asyncio.sleep(0.01)


def cpu_ticks(pid):
    """The CPU time of a process, in hundredths of a second."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


def expected(found, data):
    return found._expected_seconds(_File(data, 25_000_000))


def test_the_expected_cost_of_a_file_follows_what_similar_files_took():
    """After files that took longer than estimated, the next one like them is expected to; a larger one is not."""

    async def run():
        async with decoders() as found:
            before = expected(found, PHOTO), expected(found, LARGE)
            for _ in range(20):
                found._record(_File(PHOTO, 25_000_000), 0.1, failed=False)
            return before, (expected(found, PHOTO), expected(found, LARGE))

    before, after = asyncio.run(run())
    assert after[0] > 5 * before[0]
    assert after[1] == before[1]


def test_files_that_fail_at_once_do_not_lower_the_expected_cost():
    """A client could send damaged files of many pixels, so that too many good ones are accepted."""
    photo = encoded(Image.linear_gradient("L").resize((2000, 1500)), "JPEG")
    cut = photo[:700]

    async def run():
        async with decoders() as found:
            before = expected(found, photo)
            results = await decode(found, *[cut] * 40)
            return before, results, expected(found, photo)

    before, results, after = asyncio.run(run())
    assert all(isinstance(result, UndecodableImage) for result in results)
    assert _File(cut, 25_000_000).pace_key == _File(photo, 25_000_000).pace_key
    assert after >= before


def test_files_of_little_work_do_not_lengthen_the_expected_wait():
    """The time that a request spends on its way to a process and back is not the processor's."""

    async def run():
        async with decoders() as found:
            for _ in range(50):
                await decode(found, PHOTO[:60])
            return found._fast.queue._pace.ratio

    assert asyncio.run(run()) < 2


def test_the_images_of_a_request_share_a_limit_of_time(monkeypatch):
    """After the limit, the remaining images are errors, and no process is ended. The next request has a new limit."""
    monkeypatch.setattr("app.serving.engine.decoders._REQUEST_CPU_LIMIT_S", 0.05)
    stopped = []

    async def run():
        async with decoders(stopped, processes=1) as found:
            return await decode(found, *[PHOTO] * 50), await decode(found, PHOTO)

    results, (later,) = asyncio.run(run())
    decoded = [isinstance(result, PreprocessedImage) for result in results]
    assert decoded == sorted(decoded, reverse=True)  # the first ones
    assert 1 <= sum(decoded) < 50
    assert all("send fewer at once" in str(result) for result in results[sum(decoded) :])
    assert isinstance(later, PreprocessedImage)
    assert stopped == []


def test_a_request_with_many_images_does_not_go_before_those_that_come_later():
    """One image, sent after a request with twenty, waits for one or two of them."""
    small = png(stroke_images(1, seed=1, size=40)[0])  # twenty of them take the fast lane, too

    async def run():
        ended = []
        async with decoders(processes=1) as found:

            async def send(name, *files):
                await decode(found, *files)
                ended.append(name)

            many = asyncio.create_task(send("many", *[small] * 20))
            async with asyncio.timeout(30):
                while found._fast.queue.jobs == 0:
                    await asyncio.sleep(0)
            await send("one", small)
            await many
        return ended

    assert asyncio.run(run()) == ["one", "many"]


def test_the_messages_of_libraries_are_not_in_the_log():
    """libtiff prints a line for each damaged row of an image: 10 MB for a file of 4 KB."""
    code = """
import os
from app.serving.engine.decode_worker import limit_process
limit_process()
os.write(1, b"out"), os.write(2, b"err")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


@pytest.mark.parametrize("which", ["idle", "all idle"])
def test_killed_idle_processes_are_replaced(which):
    """After a kill the next images are refused at most for a moment, then decoded; the processes do not become more."""

    async def run():
        async with decoders() as found:
            for _ in range(3):
                for process in decoder_processes()[: 1 if which == "idle" else None]:
                    os.kill(process, signal.SIGKILL)
                assert isinstance(await decode_at_last(found), PreprocessedImage)
            until = time.monotonic() + 20
            while len(decoder_processes()) > 2:
                assert time.monotonic() < until, decoder_processes()
                await asyncio.sleep(0.1)

    async def decode_at_last(found):
        for _ in range(100):
            try:
                return (await decode(found, PHOTO))[0]
            except Overloaded:
                await asyncio.sleep(0.1)
        return None

    asyncio.run(run())
    assert not decoder_processes()


_WITHOUT_TEMPORARY_FILES = """
import asyncio, multiprocessing.util, shutil, sys
from app.serving.engine import decoders
from app.serving.engine.admission import Overloaded

decoders._LOST_AFTER_S = 1.0

async def run():
    found = decoders.Decoders(processes=2, max_pixels=10**6, deadline_s=30.0, on_stopped=print)
    await found.start()
    shutil.rmtree(multiprocessing.util.get_temp_dir())  # with the socket over which processes are started
    decoders._stop(found._pool)
    was_lost = []
    while not found.is_lost:
        was_lost.append(found.is_lost)
        try:
            await found.decode([open(sys.argv[1], "rb").read()], decoders.DecodeOptions("auto", 28), deadline=1e9)
        except Overloaded:
            await asyncio.sleep(0.1)
        else:
            sys.exit("decoded without a process")
    assert len(was_lost) > 5
    print("lost")

if __name__ == "__main__":
    asyncio.run(run())
"""


def test_a_server_that_can_start_no_process_any_more_is_lost(tmp_path):
    """Not at the first failure, which may pass; the log names it."""
    script, photo = tmp_path / "script.py", tmp_path / "photo.png"
    script.write_text(_WITHOUT_TEMPORARY_FILES), photo.write_bytes(PHOTO)
    done = subprocess.run(
        [sys.executable, script, photo], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "lost\n"), done.stderr
    assert "decoder processes have ended, or cannot be started" in done.stderr


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
    """A decoder process that is stopped for a while makes the expected wait longer than its CPU time."""

    async def run():
        async with decoders(processes=1) as found:
            (process,) = decoder_processes()
            waiting = asyncio.create_task(decode(found, LARGE))
            await begun(waiting, process)
            os.kill(process, signal.SIGSTOP)
            await asyncio.sleep(2)
            os.kill(process, signal.SIGCONT)
            await waiting
            return found._slow.queue._pace.ratio

    assert asyncio.run(run()) > 1.5


def test_work_in_progress_can_be_given_less_time():
    """After finish_within, a request whose deadline is later raises TimeoutError at the new one."""

    async def run():
        async with decoders() as found:
            slow = asyncio.create_task(decode(found, LARGE))
            await asyncio.sleep(0)
            found.finish_within(0.1)
            with pytest.raises(TimeoutError):
                await slow

    asyncio.run(run())


def test_a_deadline_frees_the_process():
    """TimeoutError at the deadline; the process that was busy is replaced."""

    async def run():
        async with decoders(processes=1) as found:
            (busy,) = decoder_processes()
            with pytest.raises(TimeoutError):
                await decode(found, LARGE, seconds=0.1)
            result = (await decode(found, PHOTO))[0]
            assert busy not in decoder_processes()
            return result

    assert isinstance(asyncio.run(run()), PreprocessedImage)


def test_memory_of_a_process_is_limited():
    """An allocation above the limit fails in the process; the limit leaves room for the largest accepted image."""
    code = """
from app.serving.engine.decode_worker import limit_process
limit_process()
try:
    bytearray({})
except MemoryError:
    exit(7)
"""
    sizes = (210 << 20, 500 << 20)
    assert [subprocess.run([sys.executable, "-c", code.format(size)]).returncode for size in sizes] == [0, 7]
