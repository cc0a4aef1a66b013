"""What a person sees of a training: a bar on a terminal, plain lines elsewhere. Knows no tensor."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Progress(Protocol):
    """What the training loop tells while it runs."""

    def start(self, epoch: int, epochs: int, images: int) -> None:
        """`epoch` of `epochs` are behind us (more than 0 after a resume); each goes over so many images."""

    def advance(self, images: int) -> None:
        """So many more images were learnt from."""

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        """The mean squared errors after an epoch; epoch 0 is the untrained network."""

    def say(self, sentence: str) -> None:
        """What happens next."""


class SilentProgress:
    """For callers that need no account."""

    def start(self, epoch: int, epochs: int, images: int) -> None: ...
    def advance(self, images: int) -> None: ...
    def finish_epoch(self, epoch: int, fit: float, test: float) -> None: ...
    def say(self, sentence: str) -> None: ...


class LineProgress:
    """A line an epoch, for logs and pipes."""

    def start(self, epoch: int, epochs: int, images: int) -> None:
        self._epochs, self._images, self._first = epochs, images, epoch
        self._began = time.perf_counter()

    def advance(self, images: int) -> None: ...

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        done = epoch - self._first
        if done < 1:
            return self.say(f"epoch {epoch}/{self._epochs}  fit {fit:.4f}  test {test:.4f}")
        each = (time.perf_counter() - self._began) / done
        speed, left = self._images / each, each * (self._epochs - epoch)
        return self.say(
            f"epoch {epoch}/{self._epochs}  fit {fit:.4f}  test {test:.4f}  {speed:,.0f} images/s  {left:.0f} s left"
        )

    def say(self, sentence: str) -> None:
        print(sentence, flush=True)  # a log is read while it grows


class BarProgress:
    """A bar with loss, images per second and the time left. Made by `terminal_progress`, which opens and closes it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._epochs = RichProgress(
            TextColumn("[bold]epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("fit {task.fields[fit]}  test {task.fields[test]}  {task.fields[speed]} images/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._epochs.add_task("", total=None, fit="-", test="-", speed="-")

    def open(self) -> None:
        self._epochs.start()

    def close(self) -> None:
        self._epochs.stop()

    def start(self, epoch: int, epochs: int, images: int) -> None:
        self._images, self._seen, self._began = images, 0, time.perf_counter()
        self._epochs.update(self._task, total=epochs, completed=epoch)

    def advance(self, images: int) -> None:
        self._seen += images
        if (share := self._seen / self._images % 1) and int(share * 20) != int((share - images / self._images) * 20):
            self._epochs.advance(self._task, 0.05)

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        speed = f"{self._seen / (time.perf_counter() - self._began):,.0f}" if self._seen else "-"
        self._epochs.update(self._task, completed=epoch, fit=f"{fit:.4f}", test=f"{test:.4f}", speed=speed)

    def say(self, sentence: str) -> None:
        self._epochs.console.print(sentence, highlight=False)


@contextmanager
def terminal_progress(*, is_terminal: bool) -> Iterator[Progress]:
    """The progress that suits the output. The terminal is left tidy whatever happens inside."""
    if not is_terminal:
        yield LineProgress()
        return
    bar = BarProgress()
    bar.open()
    try:
        yield bar
    finally:
        bar.close()
