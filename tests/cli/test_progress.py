"""The progress of a training as it is shown to a person."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from app.cli.progress import BarProgress, LineProgress, stages_on_terminal, terminal_progress


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, BarProgress), (False, LineProgress)])
def test_a_bar_on_a_terminal_and_lines_elsewhere_show_the_same(is_terminal, kind, capsys):
    """On a terminal there is a bar, elsewhere there are lines; both end with the last losses."""
    with terminal_progress(is_terminal=is_terminal) as progress:
        assert isinstance(progress, kind)
        progress.start(0, 2, 100)
        progress.finish_epoch(0, 0.9, 0.9)
        for epoch in (1, 2):
            for _ in range(10):
                progress.advance(10)
            progress.finish_epoch(epoch, 0.1234, 0.4321)
        progress.begin("Evaluating", 50)(50)
        progress.begin("Drawing the report")
    output = capsys.readouterr().out
    assert "0.1234" in output and "0.4321" in output and "Drawing the report" in output


def test_a_long_stage_prints_how_far_it_is(monkeypatch, capsys):
    """Without a terminal: a line after 20 seconds, with the time that is left at the speed until then."""
    now = iter([0.0, 10.0, 20.0, 30.0])
    monkeypatch.setattr("app.cli.progress.time.perf_counter", lambda: next(now))
    advance = LineProgress().begin("Drawing uploads", 4_000)
    for _ in range(3):
        advance(500)
    assert capsys.readouterr().out.splitlines() == ["Drawing uploads ...", "Drawing uploads: 1,000 of 4,000, 60 s left"]


def test_bars_fit_into_eighty_columns(monkeypatch):
    """Every line, with the longest name of a stage."""
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    bars = BarProgress(Console(file=out, force_terminal=True, width=80))
    with bars.display:
        bars.start(0, 1000, 1_000_000)
        bars.advance(1000)
        bars.finish_epoch(1000, 0.1234, 0.4321)
        bars.begin("Drawing calibration uploads", 10)(5)
    lines = Text.from_ansi(out.getvalue()).plain.splitlines()
    assert "0.4321" in out.getvalue() and "Drawing calibration uploads" in lines[-1] + lines[-2]
    assert max(len(line.rstrip()) for line in lines) < 80
    assert all("left" in line for line in lines if line.strip())  # not wrapped


@pytest.mark.parametrize("is_terminal", [True, False])
def test_stages_are_shown_on_a_terminal_alone(is_terminal, monkeypatch, capsys):
    """On standard error, so that the output of --json stays whole."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    with stages_on_terminal() as progress:
        progress.begin("Scoring", 3)(1)
    shown = capsys.readouterr()
    assert ("Scoring" in shown.err, shown.out) == (is_terminal, "")
