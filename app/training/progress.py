"""How the training loop reports its progress. The command line shows it; here are the interface and a silent one."""

from typing import Protocol


class Progress(Protocol):
    """Receives the events of a training."""

    def start(self, epoch: int, epochs: int, images: int) -> None:
        """The loop begins: `epoch` of `epochs` are done (more than 0 after a resume); an epoch has `images` images."""

    def advance(self, images: int) -> None:
        """`images` more images were learnt from."""

    def finish_epoch(self, epoch: int, fit: float, test: float) -> None:
        """An epoch is done, with these mean squared errors; epoch 0 is the untrained network."""

    def say(self, sentence: str) -> None:
        """Show a sentence to the user."""


class SilentProgress:
    """Shows nothing."""

    def start(self, epoch: int, epochs: int, images: int) -> None: ...
    def advance(self, images: int) -> None: ...
    def finish_epoch(self, epoch: int, fit: float, test: float) -> None: ...
    def say(self, sentence: str) -> None: ...
