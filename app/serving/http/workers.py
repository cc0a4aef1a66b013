"""Several worker processes on one port. On Linux each has its own socket, and the kernel spreads new connections over them.

With one shared socket, the process that wakes first accepts all waiting connections: of 64 connections opened at once, one of
two processes got 62, and once all of them.

Names of uvicorn that its documentation does not promise: `Multiprocess` with its attributes `processes` and `should_exit` and
its method `keep_subprocess_alive`; `Process` with `process`, `is_alive`, `kill`, `join`, `start`.
"""

import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Self
from weakref import WeakKeyDictionary, WeakSet

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 30.0  # before a worker is started again
_SETTLED_S = 60.0  # a worker that lived this long is started again at once
_STARTUP_S = 60.0  # for the first answer of a worker: its imports take many seconds where the processor is busy
_STARTUP_WAIT_S = 0.5  # for one of its answers, so that signals are handled meanwhile


def serve(
    workers: int,
    *,
    host: str,
    port: int,
    on_death: Callable[[], None] = lambda: None,
    **options: Any,  # noqa: ANN401 - uvicorn's own
) -> None:
    """Serve with `workers` processes until a signal stops them; `options` are those of `uvicorn.run`.

    `on_death` is called for each worker that died.

    Raises:
        OSError: the address is in use or not available.
        SystemExit: the server could not start.
    """
    with socket.socket(_family(host)) as alone:  # SO_REUSEPORT alone would accept another server on the port
        alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        alone.bind((host, port))
    if workers == 1 or sys.platform != "linux":  # elsewhere the newest socket gets all connections
        uvicorn.run(host=host, port=port, workers=workers, **options)
        return
    config = uvicorn.Config(host=host, port=port, workers=workers, **options)
    with ReusePortSocket.on(host, port) as reserved:
        supervisor = Workers(config, [reserved], on_death)
        supervisor.run()
    if supervisor.could_not_start:
        sys.exit(STARTUP_FAILURE)


class Workers(Multiprocess):
    """uvicorn's workers. One that dies is logged with the reason, and started again after a pause that grows to 30 s."""

    def __init__(
        self,
        config: uvicorn.Config,
        sockets: list[socket.socket],
        on_death: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` returns seconds."""
        super().__init__(config, sockets)
        self._on_death, self._clock = on_death, clock
        self.could_not_start = False
        self._deaths: dict[int, int] = {}  # index of a worker -> how often it died soon after its start, in succession
        # Of a process, because a signal may put another one in its place at any time:
        self._due = WeakKeyDictionary[Process, float]()  # when to start another one, if it is dead
        self._started = WeakKeyDictionary[Process, float]()
        self._asked = WeakKeyDictionary[Process, float]()  # when it was first asked, if it did not answer at once
        self._answered = WeakSet[Process]()  # those that have answered since their start

    def keep_subprocess_alive(self) -> None:
        """Called every 0.5 s: notice workers that died or do not answer, and start those whose pause is over."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process in self._due:
                if self._clock() >= self._due[process]:
                    self._start(index)
            elif not self._answers_or_starts(process):
                self._bury(index, process)

    def _answers_or_starts(self, process: Process) -> bool:
        """Whether a worker answers, or may still be importing: it answers only after that."""
        if process in self._answered:
            return process.is_alive(self.config.timeout_worker_healthcheck)
        if process.is_alive(_STARTUP_WAIT_S):
            self._answered.add(process)
            return True
        starting = self._clock() - self._asked.setdefault(process, self._clock()) < _STARTUP_S
        return starting and process.process.is_alive()

    def _bury(self, index: int, process: Process) -> None:
        hangs = process.process.is_alive()
        process.kill()
        process.join()
        if process.exitcode == STARTUP_FAILURE and not self._deaths.get(index):  # it would fail again
            logger.error("worker %s could not start; the server stops", process.pid)
            self.could_not_start = True
            self.should_exit.set()
            return
        settled = self._clock() - self._started.setdefault(process, self._clock() - _SETTLED_S) >= _SETTLED_S
        self._deaths[index] = 1 if settled else self._deaths.get(index, 0) + 1
        pause_s = min(2.0 ** (self._deaths[index] - 1) - 1, _LONGEST_PAUSE_S)
        reason = "it did not answer" if hangs else _reason(process.exitcode)
        logger.error("worker %s died: %s; it is started again in %g s", process.pid, reason, pause_s)
        self._on_death()
        self._due[process] = self._clock() + pause_s
        if not pause_s:
            self._start(index)

    def _start(self, index: int) -> None:
        try:
            process = Process(self.config, self.sockets)
            process.start()
        except OSError as error:  # there is no memory for a process, for instance
            logger.error("a worker cannot be started: %s; it is tried again in %g s", error.strerror, _LONGEST_PAUSE_S)
            self._due[self.processes[index]] = self._clock() + _LONGEST_PAUSE_S
            return
        self.processes[index] = process
        self._started[process] = self._clock()


class ReusePortSocket(socket.socket):
    """A socket that, when it is pickled for another process, becomes a new socket on the same address there."""

    @classmethod
    def on(cls, host: str, port: int) -> Self:
        """A bound socket. Raises OSError if the address is used by a socket without SO_REUSEPORT."""
        sock = cls(_family(host))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        return sock

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).on, self.getsockname()[:2]


def _reason(exitcode: int | None) -> str:
    """`signal SIGKILL` or `exit code 1`; multiprocessing gives the number of a signal as a negative exit code."""
    if exitcode is not None and exitcode < 0:
        names = {each.value: each.name for each in signal.Signals}  # real-time signals have none
        return f"signal {names.get(-exitcode, -exitcode)}"
    return f"exit code {exitcode}"


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
