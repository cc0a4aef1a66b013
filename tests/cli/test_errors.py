"""How a command ends on an error."""

import pytest
import typer

from app.cli.errors import errors_as_sentences


def raise_instead_of_ctrl_c():
    """As torch.onnx does when Ctrl-C comes during an export."""
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as interrupt:
        raise RuntimeError("the export failed") from interrupt


def test_ctrl_c_that_a_library_turned_into_its_own_error_is_ctrl_c(capsys):
    """Exit code 130 and one word; the error of the library would be taken for a bug."""
    with pytest.raises(typer.Exit) as ended, errors_as_sentences():
        raise_instead_of_ctrl_c()
    assert (ended.value.exit_code, capsys.readouterr().err) == (130, "Stopped.\n")


def test_ctrl_c_during_the_export_of_a_training_says_how_to_continue(oddigit, strokes_file, tmp_path, monkeypatch):
    """The checkpoint of the last epoch is there."""
    monkeypatch.setattr("app.training.train.fit_and_publish", lambda *arguments: raise_instead_of_ctrl_c())
    options = ["--data", strokes_file, "--epochs", 1, "--alpha", 0.05, "--device", "cpu", "--store", tmp_path]
    done = oddigit("train", *options)
    assert done.exit_code == 130 and "--resume" in done.stderr


def test_other_errors_of_libraries_keep_their_traceback():
    """They are bugs."""
    with pytest.raises(RuntimeError), errors_as_sentences():
        raise RuntimeError
