"""Memory that the C library keeps after it has been freed."""

import ctypes
import sys
from contextlib import suppress

_M_ARENA_MAX = -8  # of mallopt, in malloc.h


def use_one_heap() -> None:
    """Let all threads share one heap, where there is glibc. Call it before threads allocate.

    By default each thread has its own heap, and `return_free_memory` leaves the free end of each: 35 MiB after large arrays.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def return_free_memory() -> None:
    """Return freed memory to the operating system (glibc only). After large requests glibc keeps 100 MiB and more of it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
