"""Plays one attack against a fresh server beside honest clients, and compares what they saw with the bounds.

The attacker is a process of lower priority, because on another machine it would not take the server's CPU time.
"""

import asyncio
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from common import Server, process_tree, serving, stop, usage

from attacks.catalogue import ATTACKS, Attack
from attacks.clients import Play, Tally, ask_once
from attacks.honest import Honest, honest_clients, run_together
from attacks.versions import NotPlayedError, Step, serves_good_version

NOT_PLAYED = "not played"
BASELINE_S, RECOVERY_S = 6.0, 10.0
UPLOAD_CPU_S, EXIT_S = 2.5, 5.0  # the most that an upload may cost, and that an exit after SIGTERM may take


@dataclass
class Row:
    """What one attack did."""

    name: str
    baseline: dict[str, tuple[float, float]]  # honest client -> p50, p99 in ms before
    expected: frozenset[int]  # statuses
    honest: dict[str, Honest]
    tally: Tally
    cpu_s: float  # of the server beyond the honest clients' share
    start_mib: float
    peak_mib: float  # start_mib and what the anonymous memory grew by
    later_mib: float
    notes: list[str]

    def broken(self) -> list[str]:
        """The bounds that do not hold."""
        small, photo, limits = self.honest["28x28"], self.honest["photo"], []
        if small.ms(99) > (bound := min(25.0, 3 * self.baseline["28x28"][1])):
            limits.append(f"28x28 p99 > {bound:.0f} ms")
        if photo.ms(99) > 1000:
            limits.append("photo p99 > 1 s")
        if any(client.share("failed") > 0 for client in self.honest.values()):
            limits.append("requests failed")
        if max(small.share("refused"), photo.share("refused"), self.honest["probe"].share("refused")) > 0.05:
            limits.append("refused > 5 %")
        if self.peak_mib > self.start_mib + 300:
            limits.append("memory > +300 MiB")
        if self.later_mib > self.start_mib + 30:
            limits.append("memory later > +30 MiB")
        if unexpected := sorted(self.tally.statuses.keys() - self.expected):
            limits.append(f"FAIL: statuses {unexpected}")
        return limits + self.notes

    def line(self) -> str:
        """The table row under HEADER."""
        kib = self.tally.sent / 1024
        per_kib = ["-", "-"]
        if kib:
            per_kib = [f"{self.cpu_s / kib * 1000:.3g}", f"{(self.peak_mib - self.start_mib) * 1024 / kib:.3g}"]
        clients = [
            f"{before[0]:.1f}/{before[1]:.1f} → {client.ms(50):.1f}/{client.ms(99):.1f}/{client.ms(100):.1f}"
            for client, before in ((self.honest[name], self.baseline[name]) for name in ("28x28", "photo"))
        ]
        shares = [
            "/".join(f"{client.share(outcome):.1%}" for client in self.honest.values()) for outcome in ("refused", "failed")
        ]
        memory = f"{self.start_mib:.0f} → {self.peak_mib:.0f} → {self.later_mib:.0f}"
        statuses = " ".join(f"{status}:{count}" for status, count in sorted(self.tally.statuses.items()))
        sent = f"{self.tally.requests:,} / {kib:,.0f}"
        verdict = "; ".join(self.broken()) or "pass"
        cells = [self.name, sent, statuses, f"{self.cpu_s:.1f}", *per_kib, *clients, *shares, memory, verdict]
        return f"| {' | '.join(cells)} |"


HEADER = (
    "attack | requests / KiB sent | statuses | CPU s | CPU ms per KiB | memory KiB per KiB | 28x28 p50/p99 → p50/p99/max ms | "
    "photo p50/p99 → p50/p99/max ms | refused 28x28/photo/probe | failed | memory MiB start, peak, 10 s later | bounds"
)


def row(name: str, seconds: float, logs: Path) -> str:
    """Play the attack `name` for `seconds` against a fresh server: a table row under HEADER."""
    try:
        return measure(name, seconds, logs).line()
    except NotPlayedError as error:
        return f"| {name} {'| ' * HEADER.count('|')}{error}: {NOT_PLAYED} |"


def measure(name: str, seconds: float, logs: Path) -> Row:
    """Raises NotPlayedError where this machine does not allow the attack."""
    attack = ATTACKS[name]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "folder"
        step = stack.enter_context(attack.beside(folder)) if attack.beside else (lambda second: None)
        given = {attack.folder_variable: str(folder)} if attack.folder_variable else {}
        with _serving(attack, logs / f"{name.replace('/', '')}.log", given) as server:
            measured = asyncio.run(_measure(name, attack, server, seconds, step))
            if "ODDIGIT_STORE" in given and not serves_good_version(folder, server.port):
                measured.notes.append("a good version is not taken up")
            if stop(server.process) == float("inf"):
                measured.notes.append("SIGTERM is ignored")
    return measured


def _serving(attack: Attack, log: Path, given: dict[str, str] | None = None) -> AbstractContextManager[Server]:
    """A fresh server on cores 0 and 1 with its default limits and the attack's own settings."""
    variables = {"ODDIGIT_DRAIN_S": "0"} | attack.variables | (given or {})
    return serving(*attack.arguments, log=log, cores="0,1", **variables)


async def _measure(name: str, attack: Attack, server: Server, seconds: float, step: Step) -> Row:
    clients, port, pid = honest_clients(), server.port, server.process.pid
    await run_together(clients, port, 1.0)
    before = usage(pid)
    await run_together(clients, port, BASELINE_S)
    baseline = {each: (client.ms(50), client.ms(99)) for each, client in clients.items()}
    start_usage, honest_cpu = usage(pid), (usage(pid).cpu_s - before.cpu_s) / BASELINE_S
    with attacker(attack.play, port, seconds) as tally:
        start_mib, grown_mib, notes = anonymous_mib(pid), 0.0, []
        watching = asyncio.create_task(run_together(clients, port, seconds))
        second = 0
        began = time.monotonic()
        while not watching.done():
            await asyncio.sleep(0.25)
            grown_mib = max(grown_mib, anonymous_mib(pid) - start_mib)
            if time.monotonic() - began > second + 1:
                await asyncio.to_thread(step, second)
                second += 1
        cpu_s = usage(pid).cpu_s - start_usage.cpu_s - honest_cpu * seconds
        sent = tally()  # before the attacker is killed
    if not (sent.requests or sent.statuses or attack.beside):
        notes.append("FAIL: nothing was sent")
    after = honest_clients()
    await run_together(after, port, RECOVERY_S)
    for each, client in after.items():
        if client.share("ok") < 0.95:
            notes.append(f"{each} afterwards: {client.share('ok'):.0%} answered")
    peak_mib = start_usage.mib + grown_mib
    later_mib = usage(pid).mib
    return Row(name, baseline, attack.expected, clients, sent, cpu_s, start_usage.mib, peak_mib, later_mib, notes)


def anonymous_mib(pid: int) -> float:
    """Memory (MiB) of a server and all its child processes that no file backs; pages that they share count for each.

    Takes less than 1 ms, and `usage` 20 ms, in which the server waits.
    """
    mib = 0.0
    for each in process_tree(pid):
        with suppress(OSError):
            fields = Path(f"/proc/{each}/status").read_text().partition("\nRssAnon:")[2].split()
            mib += int(fields[0]) / 1024 if fields else 0.0  # a process that has just ended has none
    return mib


@contextmanager
def attacker(play: Callable[[], Play], port: int, seconds: float) -> Iterator[Callable[[], Tally]]:
    """Attack from another process for `seconds`. Yields a function that waits for its end and returns its tally."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_attack, args=(play, port, seconds, sending))
    process.start()
    sending.close()  # the attacker has its own; now its end can be noticed
    receiving.recv()  # its requests are made

    def tally() -> Tally:
        with suppress(EOFError):  # the attacker itself may run out of memory
            if receiving.poll(20):
                done: Tally = receiving.recv()
                return done
        return Tally()

    try:
        yield tally
    finally:
        process.kill()
        process.join()


def _attack(play: Callable[[], Play], port: int, seconds: float, sending: Connection) -> None:
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    tally, start_playing = Tally(), play()
    sending.send("ready")

    async def run() -> None:
        try:
            async with asyncio.timeout(seconds):
                await start_playing(port, tally)
        except* TimeoutError:
            pass

    asyncio.run(run())
    sending.send(tally)


def cost_alone(name: str, logs: Path) -> str:
    """Send one upload of the attack `name` to a fresh server: a table row with its CPU seconds, and pass or fail."""
    attack, tally = ATTACKS[name], Tally()
    assert attack.upload is not None
    message = attack.upload()
    with _serving(attack, logs / "cost.log") as server:
        before = usage(server.process.pid).cpu_s
        with suppress(TimeoutError):
            asyncio.run(asyncio.wait_for(ask_once(server.port, message, tally), 20))
        time.sleep(0.5)
        cpu_s = usage(server.process.pid).cpu_s - before
        stop(server.process, 0)
    statuses = " ".join(map(str, tally.statuses))
    passed = cpu_s <= UPLOAD_CPU_S and tally.statuses.keys() <= attack.expected
    return f"| {name} | {len(message):,} | {statuses} | {cpu_s:.2f} | {'pass' if passed else 'FAIL'} |"


def exit_time(name: str, logs: Path) -> str:
    """Send SIGTERM three seconds into the attack `name`: a table row with the seconds until the server ends."""
    attack = ATTACKS[name]
    with _serving(attack, logs / "exit.log") as server, attacker(attack.play, server.port, 60):
        time.sleep(3)
        seconds = stop(server.process)
    return f"| {name} | {seconds:.1f} | {'pass' if seconds <= EXIT_S else 'FAIL'} |"
