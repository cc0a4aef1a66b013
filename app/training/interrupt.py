"""Ctrl-C at a moment that suits: noted when it comes, acted upon where the program says so."""

import os
import signal
import threading
from types import TracebackType

_NOTICE = b"\nStopping after this epoch; Ctrl-C again stops at once.\n"


class Interrupt:
    """While entered, Ctrl-C is noted, and `check` raises it. A second one is raised wherever it comes.

    Raised at once it might come amid a write, where libraries turn it into another error, or in a destructor, where Python
    drops it. Outside the main thread, which alone receives signals, this does nothing.
    """

    def __init__(self) -> None:
        self._noted = False
        self._ours = False

    def __enter__(self) -> "Interrupt":
        self._ours = threading.current_thread() is threading.main_thread()
        if self._ours:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, self._before)

    def check(self) -> None:
        """Raises KeyboardInterrupt if Ctrl-C was pressed."""
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, signal_number: int, frame: object) -> None:
        if self._noted:
            raise KeyboardInterrupt
        self._noted = True
        os.write(2, _NOTICE)  # print is not safe in a signal handler
