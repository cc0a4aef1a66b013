import gc
import threading
import time
import weakref

import pytest

from app.serving.engine.daemon_threads import start_daemon


class Loaded:
    """Something large."""


def test_what_a_failed_call_had_loaded_is_freed_without_a_garbage_collection():
    """The error of a version that is refused must not keep its arrays in memory."""
    kept = []

    def fail():
        loaded = Loaded()
        kept.append(weakref.ref(loaded))
        raise ValueError

    gc.disable()
    try:
        before = threading.active_count()
        with pytest.raises(ValueError) as failed:
            start_daemon(fail).result(10)
        del failed
        ends = time.monotonic() + 10
        while threading.active_count() > before and time.monotonic() < ends:
            time.sleep(0.01)
        assert kept[0]() is None
    finally:
        gc.enable()
