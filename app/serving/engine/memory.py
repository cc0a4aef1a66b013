"""Memory that the C library keeps after it has been freed."""

import ctypes
import sys
from contextlib import suppress

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE_BYTES, _UNUSED_BYTES = 4 * 2**20, 2**20


def return_large_blocks_when_freed() -> None:
    """Let glibc return blocks of 4 MiB and more to the operating system as soon as they are freed.

    It does so by default until the first of them has been freed, and then keeps blocks of up to 32 MiB. To return them later
    with `return_free_memory` makes other threads wait for tens of milliseconds.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no mallopt
            library = ctypes.CDLL(None)
            library.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
            library.mallopt(_M_TRIM_THRESHOLD, _UNUSED_BYTES)


def return_free_memory() -> None:
    """Return freed memory to the operating system (glibc only). After large requests glibc keeps 100 MiB and more of it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
