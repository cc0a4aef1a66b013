"""The command `train`."""

import os
import signal
import subprocess
import sys

from live import ROOT


def test_interrupt_says_how_to_continue(strokes_file, tmp_path):
    """Ctrl-C ends a training with exit code 130 and the way to go on."""
    options = ["--data", strokes_file, "--store", tmp_path, "--epochs", "5000", "--alpha", "0.05", "--device", "cpu"]
    command = [sys.executable, "-m", "app", "train", *map(str, options)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("epoch 2/"):
            break
    os.kill(process.pid, signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in complaint and "Traceback" not in complaint
