"""The progress of a training as it is shown to a person."""

import pytest

from app.cli.progress import BarProgress, LineProgress, terminal_progress


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
        progress.say("Done.")
    output = capsys.readouterr().out
    assert "0.1234" in output and "0.4321" in output and "Done." in output
