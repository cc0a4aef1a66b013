import re
import subprocess
import sys

from live import ROOT, run


def test_the_page_has_the_tables_of_the_calculation():
    """docs/growing.md shows what `python benchmarks/growing.py` prints."""
    done = subprocess.run([sys.executable, "benchmarks/growing.py"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    page = (ROOT / "docs" / "growing.md").read_text()
    parts = done.stdout.strip().split("\n\n")
    assert len(parts) == 3, done.stderr
    assert [part for part in parts if part not in page] == []


def test_more_images_need_more_cores():
    """The assumptions are options."""
    first, second = cores("2e10"), cores("4e10")
    assert first
    assert all(more > fewer for fewer, more in zip(first, second, strict=True))


def cores(images_a_day):
    """The cores of each way of scoring, from the second table."""
    table = run(sys.executable, "benchmarks/growing.py", "--images-a-day", images_a_day).stdout.split("\n\n")[1]
    return [int(cell.replace(",", "")) for cell in re.findall(r"^\|[^|]+\| ([\d,]+) \|", table, re.MULTILINE)]
