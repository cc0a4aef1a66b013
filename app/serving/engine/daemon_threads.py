"""Runs functions that may never return, such as reads from a file system that hangs, on threads that nothing waits for."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def start_daemon(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> "Future[T]":
    """Call `function` on a daemon thread of its own, which does not hold up the end of the process.

    An executor's threads are joined at exit, and a call that hangs would take one of them from all other users for good.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # a caller that is cancelled leaves the thread alone

    def run(future: Future[T]) -> None:
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        except BaseException as error:  # SystemExit, or a panic of a library written in Rust
            future.set_exception(RuntimeError(repr(error)))
        finally:
            del future  # the error refers to this frame: a cycle would keep all that the function had loaded

    threading.Thread(target=run, args=(future,), daemon=True).start()
    return future
