"""The README and the pages of docs/, taken apart for the tests that keep them true."""

import re
import shlex
from itertools import pairwise

from live import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
ROOT_PAGES = [ROOT / name for name in ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
TEXT = "\n".join(page.read_text() for page in PAGES)


def blocks(text):
    """The code blocks of a page: (language, content)."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def arguments(line):
    """A line of a shell block as a list, without its comment."""
    return shlex.split(line, comments=True)


LINES = [line for kind, block in blocks(TEXT) if kind == "sh" for line in block.splitlines()]
CURLS = [line for line in LINES if line.startswith("curl ") and "https://" not in line]  # those to a server on this machine


def printed_by(text, language):
    """The blocks of a language that are followed by a block of their output: (code, output)."""
    found = blocks(text)
    return [(code, output) for (kind, code), (next_kind, output) in pairwise(found)
            if kind == language and next_kind == "text"]  # fmt: skip
