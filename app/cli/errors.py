"""How a command ends: an error as one sentence, Ctrl-C, and a standard output that is closed or cannot be written."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

import typer

from app.cli.options import printable
from app.training.interrupt import was_interrupted

_INTERRUPTED = 130  # 128 + SIGINT
_CLOSED_PIPE = 141  # 128 + SIGPIPE


class OutputError(OSError):
    """Standard output cannot be used; the message says why."""


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Turn our own errors and file-system errors into one sentence on stderr and exit code 2; Ctrl-C into exit code 130.

    A closed pipe ends the command quietly with exit code 141. Other exceptions are bugs, so they pass with their traceback.
    """
    try:
        with _sentences():
            if sys.stdout is None:
                raise OutputError("Standard output is closed.")
            with _flushed_output():
                yield
    except BrokenPipeError:
        for stream in (sys.stdout, sys.stderr):
            _discard_buffer(stream)
        raise typer.Exit(_CLOSED_PIPE) from None


@contextmanager
def _sentences() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as interrupt:
        _end(str(interrupt) or "Stopped.", _INTERRUPTED)
    except BrokenPipeError:
        raise
    except Exception as error:
        if was_interrupted(error):
            _end("Stopped.", _INTERRUPTED)
        if not isinstance(error, OSError) and not type(error).__module__.startswith("app."):
            raise
        _end(printable(str(error)), 2)


@contextmanager
def _flushed_output() -> Iterator[None]:
    """Flush standard output at the end of a command. The interpreter would report an error there with a traceback."""
    try:
        yield
    except typer.Exit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _end(sentence: str, code: int) -> NoReturn:
    """Print the sentence and exit. If buffered output cannot be written, that is the sentence, with exit code 2."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        _discard_buffer(sys.stdout)
        sentence, code = f"Standard output cannot be written: {error.strerror}.", 2
    try:
        typer.echo(sentence, err=True)
    except BrokenPipeError:
        raise
    except OSError:  # standard error cannot be written either
        _discard_buffer(sys.stderr)
    raise typer.Exit(code) from None


def _discard_buffer(stream: TextIO | None) -> None:
    """Redirect the stream to /dev/null; the interpreter flushes it at exit and would fail again."""
    if stream is not None:
        with suppress(OSError):  # not a file, in tests
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
