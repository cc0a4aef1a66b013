"""The work of a decoder process: the bytes of one image file in, a `PreprocessedImage` out, within limits of time and memory.

A decoder process runs untrusted bytes through the C code of image libraries. The kernel ends the process when one image takes
too much CPU time, and refuses memory above the limit, so that a file can harm nothing but its own process.
"""

import os
import resource
import signal
import time
from pathlib import Path
from typing import NamedTuple

from app.detection.imaging.decode import Preprocess, load_codecs
from app.detection.imaging.decoding_cost import decoding_seconds
from app.detection.imaging.errors import TOO_MUCH_MEMORY, DecodingTooLong, ImageError
from app.detection.imaging.preprocess import PreprocessedImage
from app.detection.imaging.upload_warnings import decode_upload
from app.serving.engine.memory import keep_freed_memory

_MEMORY_BYTES = 384 * 2**20  # beside the memory of the libraries; 270 MiB for a PNG with alpha of 65,535 x 381 pixels
_KEPT_BYTES = 4 * 2**20  # of freed memory: without them a photograph takes a third more time
_NICE = 5  # the event loop goes first

load_codecs()  # once, in the process that all decoder processes are forked from


def limit_process() -> None:
    """Lower the priority and the memory limit of this process. Called once, when a decoder process starts."""
    os.nice(_NICE)
    _discard_output()
    keep_freed_memory(_KEPT_BYTES)
    statm = Path("/proc/self/statm")
    if statm.exists():  # Linux
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY_BYTES,) * 2)


def _discard_output() -> None:
    """Redirect stdout and stderr to /dev/null: libtiff prints a message for each damaged row."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        os.dup2(nothing, output)
    os.close(nothing)


class Decoded(NamedTuple):
    """The image or its error, None if decoding was not begun; the expected and the measured seconds."""

    image: PreprocessedImage | ImageError | None
    expected_s: float
    cpu_s: float
    wall_s: float  # longer than `cpu_s` where the process waited for the processor


def decode_within(
    data: bytes, preprocess: Preprocess, max_pixels: int, size: int, max_expected_s: float, cpu_limit_s: float
) -> Decoded:
    """Decode one image with `decode_upload`, if the estimate from its header is at most `max_expected_s` CPU seconds.

    The kernel ends the process with SIGPROF after `cpu_limit_s` seconds of CPU time.
    """
    began, started, expected = time.perf_counter(), time.process_time(), 0.0
    image: PreprocessedImage | ImageError | None = None
    signal.setitimer(signal.ITIMER_PROF, cpu_limit_s)
    try:
        expected = decoding_seconds(data, max_pixels)
        if expected <= max_expected_s:
            image = decode_upload(data, preprocess=preprocess, max_pixels=max_pixels, size=size)
    except ImageError as error:
        image = error.with_traceback(None)
    except MemoryError:
        image = DecodingTooLong(TOO_MUCH_MEMORY)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return Decoded(image, expected, time.process_time() - started, time.perf_counter() - began)
