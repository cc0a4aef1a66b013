"""Memory of a process: what the C library keeps after it has been freed, and garbage collection."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_NEW_OBJECTS = range(5_000, 50_000)  # since the last collection; fewer hold little memory, and more take over 20 ms
_MAX_NEW_OBJECTS = 1_000_000  # about 100 MB; beyond it garbage is collected, even if that takes 300 ms
_FEW_TASKS = 100  # with more, the objects that they use make a collection slow
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt, in malloc.h


@contextmanager
def no_automatic_garbage_collection() -> Iterator[None]:
    """Garbage is collected by `collect_garbage` alone, and only among objects that are made from now on.

    Otherwise Python walks all new objects at times that it chooses, while all requests wait: for 250 ms when 4,000 clients have
    begun to send images. Requests form no reference cycles, so that nearly nothing waits for a collection.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def collect_garbage(tasks: int) -> None:
    """Collect garbage if there are enough new objects and it is quick, or if there are too many. Call this once a second.

    `tasks` is the number of unfinished tasks, which use most of the objects that a collection has to walk.
    """
    new_objects = gc.get_count()[0]
    if (new_objects in _NEW_OBJECTS and tasks < _FEW_TASKS) or new_objects > _MAX_NEW_OBJECTS:
        gc.collect()


def use_one_heap() -> None:
    """Let all threads share one heap, where there is glibc. Call it before threads allocate.

    By default each thread has its own heap, and `return_free_memory` leaves the free end of each: 35 MiB after large arrays.
    """
    _call("mallopt", _M_ARENA_MAX, 1)


def keep_freed_memory(size: int) -> None:
    """Let the C library keep `size` bytes of freed memory for the next allocations, where there is glibc.

    By default it returns most arrays of a photograph to the operating system at once, and gets new pages for the next ones.
    Larger arrays are still returned when they are freed.
    """
    _call("mallopt", _M_MMAP_THRESHOLD, size)
    _call("mallopt", _M_TRIM_THRESHOLD, size)


def return_free_memory() -> None:
    """Return freed memory to the operating system (glibc only). After large requests glibc keeps 100 MiB and more of it."""
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has none of them
            getattr(ctypes.CDLL(None), function)(*arguments)
