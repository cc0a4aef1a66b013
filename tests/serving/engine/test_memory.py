import gc
import platform
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from app.serving.engine.memory import collect_garbage, no_automatic_garbage_collection

PROGRAM = """
import threading
from app.serving.engine.memory import return_free_memory, use_one_heap

def resident_mib():
    with open("/proc/self/status") as status:
        return int(status.read().partition("RssAnon:")[2].split()[0]) / 1024

def allocate():
    large = b"x" * (30 * 2**20)  # when it is freed, the C library keeps as much of a heap from then on
    del large
    blocks = [b"x" * 100_000 for _ in range(300)]
    del blocks
    freed.set()
    done.wait()

{prepare}
freed, done = threading.Event(), threading.Event()
before = resident_mib()
thread = threading.Thread(target=allocate)
thread.start()
freed.wait()
return_free_memory()
print(resident_mib() - before)
done.set()
"""


def kept_mib(prepare):
    """The memory that stays resident after a thread has allocated and freed 29 MiB in small blocks."""
    command = [sys.executable, "-c", PROGRAM.format(prepare=prepare)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc keeps a heap for each thread")
def test_with_one_heap_freed_memory_of_threads_is_returned():
    assert kept_mib("use_one_heap()") < 5
    assert kept_mib("") > 10  # else use_one_heap has no purpose any more


PHOTOGRAPHS = """
import os, resource, sys
from app.detection.imaging.upload_warnings import decode_upload
from app.serving.engine.decode_worker import limit_process

out = os.fdopen(os.dup(1), "w")  # a decoder process prints nothing
{prepare}
with open(sys.argv[1], "rb") as file:
    photograph = file.read()
for _ in range(2):
    decode_upload(photograph)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    decode_upload(photograph)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 10, file=out)
"""


def page_faults(prepare):
    """How many pages of memory a photograph of 320 x 320 pixels takes anew from the operating system."""
    photograph = Path(__file__).parents[2] / "samples" / "two.jpg"
    command = [sys.executable, "-c", PHOTOGRAPHS.format(prepare=prepare), photograph]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told how much memory to keep")
def test_a_decoder_process_uses_its_memory_again():
    assert page_faults("limit_process()") < 50
    assert page_faults("") > 200  # else keep_freed_memory has no purpose any more


class Cycle:
    """Only the garbage collector frees it."""

    def __init__(self):
        self.itself = self


@pytest.mark.parametrize(
    ("count", "tasks", "collected"),
    [(100, 1, False), (10_000, 1, True), (10_000, 500, False), (100_000, 1, False), (1_100_000, 500, True)],
)
def test_garbage_is_collected_when_that_is_quick_or_cannot_wait(count, tasks, collected):
    """A few objects are not worth it; with many, or many that are in use, all requests would wait."""
    try:
        with no_automatic_garbage_collection():
            found = weakref.ref(Cycle())
            garbage = [Cycle() for _ in range(count)]
            del garbage
            assert found() is not None
            collect_garbage(tasks)
            assert (found() is None) == collected
        assert gc.isenabled()
    finally:
        gc.unfreeze()
        gc.collect()


def test_a_server_does_not_look_at_the_objects_of_its_start_again():
    before = Cycle()
    found = weakref.ref(before)
    try:
        with no_automatic_garbage_collection():
            del before
            gc.collect()
            assert found() is not None
    finally:
        gc.unfreeze()
        gc.collect()
    assert found() is None
