"""Puts the shipped detectors into the wheel, as app/model_store; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithDetectors(build_py):
    """Copies the packages, and the detectors beside them."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # an editable installation reads them from the clone
            shutil.copytree("model_store", Path(self.build_lib) / "app" / "model_store", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithDetectors})
