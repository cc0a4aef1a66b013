"""The progress of long work, shown to a person: bars on a terminal; elsewhere lines for the epochs and stages of a training."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from app.training.progress import SILENT, Advance, Progress, no_steps

Item = TypeVar("Item")

_LINE_INTERVAL_S = 20.0  # between lines of one stage


def counted_on_terminal(items: Iterator[Item]) -> Iterator[Item]:
    """Pass `items` on; where standard error is a terminal, count them there meanwhile."""
    if not sys.stderr.isatty():
        yield from items
        return
    columns = (TextColumn("{task.completed} images"), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task("", total=None)
        for item in items:
            display.advance(task)
            yield item


class LineProgress(Progress):
    """Prints a line for each epoch, and a line every 20 seconds of a stage, for logs and pipes."""

    def start(self, epoch: int, epochs: int, images: int) -> None:
        self._first_epoch = epoch
        self._epochs = epochs
        self._images = images
        self._start_time = time.perf_counter()

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        line = f"epoch {epoch}/{self._epochs}  fit {fit:.4f}  test {test:.4f}"
        done = epoch - self._first_epoch
        if done >= 1:
            seconds = (time.perf_counter() - self._start_time) / done
            line += f"  {self._images / seconds:,.0f} images/s  {seconds * (self._epochs - epoch):.0f} s left"
        print(line, flush=True)  # a log is read while it grows

    def begin(self, stage: str, steps: int | None = None) -> Advance:
        print(f"{stage} ...", flush=True)
        return no_steps if steps is None else _StageLines(stage, steps).advance


class _StageLines:
    """Prints the progress of one stage, at most every 20 seconds."""

    def __init__(self, stage: str, steps: int) -> None:
        self._stage, self._steps, self._done = stage, steps, 0
        self._began = self._printed = time.perf_counter()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.perf_counter()
        if now - self._printed >= _LINE_INTERVAL_S:
            self._printed = now
            left = (now - self._began) * (self._steps / self._done - 1)
            print(f"{self._stage}: {self._done:,} of {self._steps:,}, {left:.0f} s left", flush=True)


class BarProgress(Progress):
    """A bar with losses, images per second and the time left, and a bar for each stage before and after the epochs."""

    def __init__(self, console: Console | None = None, *, transient: bool = False) -> None:
        """Shown while `display` is entered; it fits into 80 columns."""
        self.display = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=12),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=transient,
        )

    def start(self, epoch: int, epochs: int, images: int) -> None:
        self._epochs = epochs
        self._task = self._add(f"{epoch}/{epochs}", epochs * images, epoch * images)

    def advance(self, images: int) -> None:
        self.display.advance(self._task, images)

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        speed = next(task.speed for task in self.display.tasks if task.id == self._task)  # None in the beginning
        shown_speed = f"{speed:,.0f}" if speed else "-"
        description = f"{epoch}/{self._epochs} fit {fit:.4f} test {test:.4f} {shown_speed}/s"
        self.display.update(self._task, description=description)

    def begin(self, stage: str, steps: int | None = None) -> Advance:
        return partial(self.display.advance, self._add(stage, steps))

    def _add(self, description: str, total: int | None, completed: int = 0) -> TaskID:
        """A new bar; those before it are complete, though their number of steps may not have been known."""
        for task in self.display.tasks:
            self.display.update(task.id, total=task.total or 1, completed=task.total or 1)
        return self.display.add_task(description, total=total, completed=completed)


@contextmanager
def terminal_progress(*, is_terminal: bool) -> Iterator[Progress]:
    """The progress display that suits the output: a bar for a terminal, lines for a file or a pipe."""
    if is_terminal:
        bar = BarProgress()
        with bar.display:  # restores the terminal, on errors too
            yield bar
    else:
        yield LineProgress()


@contextmanager
def stages_on_terminal() -> Iterator[Progress]:
    """Bars on standard error where that is a terminal, which are removed at the end; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield SILENT
        return
    bars = BarProgress(Console(stderr=True), transient=True)
    with bars.display:
        yield bars
