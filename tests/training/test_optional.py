"""Commands that need the training extra say so before they begin."""

import re
import sys

import pytest

from app.training import optional
from app.training.optional import PACKAGES, MissingExtra, check_training_extra


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, monkeypatch):
    """The command uses the interpreter that runs the program."""
    monkeypatch.setattr(optional, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(MissingExtra, match=f"^{package} is not installed; run: {re.escape(sys.executable)} -m pip install"):
        check_training_extra()
