"""The progress of a training, shown to a person: a bar on a terminal, a line an epoch elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from app.training.progress import Progress

Item = TypeVar("Item")


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


class LineProgress:
    """Prints a line an epoch, for logs and pipes."""

    def start(self, epoch: int, epochs: int, images: int) -> None:
        self._first_epoch = epoch
        self._epochs = epochs
        self._images = images
        self._start_time = time.perf_counter()

    def advance(self, images: int) -> None: ...

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        line = f"epoch {epoch}/{self._epochs}  fit {fit:.4f}  test {test:.4f}"
        done = epoch - self._first_epoch
        if done >= 1:
            seconds = (time.perf_counter() - self._start_time) / done
            line += f"  {self._images / seconds:,.0f} images/s  {seconds * (self._epochs - epoch):.0f} s left"
        self.say(line)

    def say(self, sentence: str) -> None:
        print(sentence, flush=True)  # a log is read while it grows


class BarProgress:
    """A bar with losses, images per second and the time left. Shown by `terminal_progress`."""

    def __init__(self) -> None:
        self.display = RichProgress(
            TextColumn("[bold]{task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(bar_width=12),
            TextColumn("fit {task.fields[fit]} test {task.fields[test]} {task.fields[speed]}/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self.display.add_task("", total=None, epoch=0, epochs="?", fit="-", test="-", speed="-")

    def start(self, epoch: int, epochs: int, images: int) -> None:
        self.display.update(self._task, total=epochs * images, completed=epoch * images, epoch=epoch, epochs=epochs)

    def advance(self, images: int) -> None:
        self.display.advance(self._task, images)

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        speed = self.display.tasks[0].speed  # images per second, None in the beginning
        shown_speed = f"{speed:,.0f}" if speed else "-"
        self.display.update(self._task, epoch=epoch, fit=f"{fit:.4f}", test=f"{test:.4f}", speed=shown_speed)

    def say(self, sentence: str) -> None:
        self.display.console.print(sentence, highlight=False)


@contextmanager
def terminal_progress(*, is_terminal: bool) -> Iterator[Progress]:
    """The progress display that suits the output: a bar for a terminal, lines for a file or a pipe."""
    if is_terminal:
        bar = BarProgress()
        with bar.display:  # restores the terminal, on errors too
            yield bar
    else:
        yield LineProgress()
