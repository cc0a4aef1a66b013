"""Memory that the C library keeps after it has been freed."""

import ctypes
import sys
from contextlib import suppress


def return_free_memory() -> None:
    """Return freed memory to the operating system (glibc only). After large requests glibc keeps 100 MiB and more of it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)
