import subprocess
import sys

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
from app.serving.engine.memory import return_large_blocks_when_freed

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

if sys.argv[1] == "returned":
    return_large_blocks_when_freed()
bytearray(b"x") * 2**24  # freed at once: from here on, glibc's default keeps blocks of this size
start = resident_mib()
blocks = [bytearray(b"x") * (15 * 2**20) for _ in range(5)]
above_them = [bytearray(b"x") * 100_000 for _ in range(20)]
blocks.clear()
print(resident_mib() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
@pytest.mark.parametrize(("setting", "least", "most"), [("returned", -16, 8), ("default", 40, 100)])
def test_large_blocks_go_back_to_the_operating_system(setting, least, most):
    """75 MiB that are freed below a block in use stay with the process by default, and do not after the call."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, setting], capture_output=True, text=True, check=True)
    assert least <= float(run.stdout) <= most
