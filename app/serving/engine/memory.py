"""Memory that the C library keeps after it has been freed."""

import ctypes
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of mallopt, in malloc.h


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
