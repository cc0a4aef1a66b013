import subprocess
import sys

from live import ROOT


def test_the_page_has_the_tables_of_the_calculation():
    """docs/growing.md shows what `python benchmarks/growing.py` prints."""
    done = subprocess.run([sys.executable, "benchmarks/growing.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    page = (ROOT / "docs" / "growing.md").read_text()
    parts = done.stdout.strip().split("\n\n")
    assert len(parts) == 3, done.stderr
    assert [part for part in parts if part not in page] == []


def test_more_images_need_more_cores():
    """The assumptions are options."""
    command = [sys.executable, "benchmarks/growing.py", "--images-a-day", "2e9"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "images_a_day 2e+09" in done.stdout
