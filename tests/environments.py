"""Virtual environments of their own for programs that tests call."""

import subprocess
import sys

import pytest


def installed(package, folder, *others):
    """The Python of a virtual environment with the packages, which is kept for the next run; skips where it cannot be made."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        subprocess.run(
            [sys.executable, "-m", "venv", "--without-pip", "--clear", folder], check=True, capture_output=True, timeout=120
        )
        pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
        done = subprocess.run([*pip, package, *others], capture_output=True, text=True, timeout=500)
        if done.returncode:
            pytest.skip(f"{package} cannot be installed here: {done.stderr.strip()[-200:]}")
        (folder / "complete").touch()
    return python
