"""Ctrl-C at a safe moment: the signal is recorded when it comes and raised where the program asks for it."""

import os
import signal
import threading
from types import TracebackType

_NOTICE = b"\nStopping after this epoch; Ctrl-C again stops at once.\n"


def was_interrupted(error: BaseException) -> bool:
    """Whether Ctrl-C is the cause of the error: torch.onnx raises an error of its own for a KeyboardInterrupt."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


class Interrupt:
    """Inside the block, the first Ctrl-C is recorded and raised by `check`; a second one is raised at once.

    A KeyboardInterrupt at an arbitrary moment can hit a write, where libraries turn it into another error, or a destructor,
    where Python drops it. Only the main thread receives signals; in other threads this class does nothing, and where the shell
    had the program ignore Ctrl-C neither.
    """

    def __init__(self, notice: bytes = _NOTICE) -> None:
        """`notice` is written to standard error at the first Ctrl-C."""
        self._notice = notice
        self._interrupted = False
        is_main = threading.current_thread() is threading.main_thread()
        self._is_active = is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN

    def __enter__(self) -> "Interrupt":
        if self._is_active:
            self._previous_handler = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._is_active:
            signal.signal(signal.SIGINT, self._previous_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed."""
        if self._interrupted:
            raise KeyboardInterrupt

    def _handle(self, signal_number: int, frame: object) -> None:
        self.check()
        self._interrupted = True
        os.write(2, self._notice)  # print is not safe in a signal handler
