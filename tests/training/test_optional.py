"""Commands that need the training extra say so before they begin."""

import re
import sys

import pytest

from app.detection import extras
from app.detection.extras import MissingPackage
from app.training.optional import PACKAGES, check_training_extra


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_named_with_the_command_that_installs_it(package, monkeypatch):
    """The command uses the interpreter that runs the program."""
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == package else True)
    with pytest.raises(MissingPackage, match=f"^{package} is not installed; run: {re.escape(sys.executable)} -m pip install"):
        check_training_extra()
