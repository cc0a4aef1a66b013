"""How the trainer reports its progress: the command line shows it, and the class here shows nothing."""

from collections.abc import Callable

Advance = Callable[[int], None]  # to be called with the number of steps that were done since the last call


def no_steps(count: int) -> None:
    """An `Advance` that reports nothing."""


class Progress:
    """Receives the events of a training, a calibration or an evaluation. Shows nothing; others inherit from it."""

    def start(self, epoch: int, epochs: int, images: int) -> None:
        """The loop begins: `epoch` of `epochs` are done (more than 0 after a resume); an epoch has `images` images."""

    def advance(self, images: int) -> None:
        """`images` more images were learnt from."""

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        """An epoch is done, with these mean squared errors; epoch 0 is the untrained network."""

    def begin(self, stage: str, steps: int | None = None) -> Advance:
        """A stage before or after the loop begins, and the one before it has ended. It has `steps` steps, if that is known."""
        return no_steps


SILENT = Progress()
