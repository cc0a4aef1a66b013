"""The pages of docs/ agree with the code, with the shipped detector and with each other."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
from live import ROOT, SHIPPED
from pages import PAGES, ROOT_PAGES, TEXT, printed_by
from prometheus_client.parser import text_string_to_metric_families

from app.detection.imaging.upload_warnings import WORDS
from app.detection.store import find, load_card

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]*)\)")


@pytest.fixture(scope="module")
def generate():
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(text):
    """The anchors that headings get: lower case, no punctuation, dashes for spaces."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ["configuration.md", "http-api.md", "command-line.md"])
def test_what_follows_from_the_code_is_up_to_date(generate, page):
    """Settings, endpoints, parameters, problem types, commands and options: `python docs/generate.py` writes them."""
    assert (DOCS / page).read_text() == generate.with_parts(page), "run `python docs/generate.py`"


def test_the_pictures_are_those_of_the_shipped_version(generate):
    """docs/images has copies of the report of the version that serves."""
    report = find(SHIPPED, "mnist") / "report"
    old = [name for name in generate.PICTURES if (DOCS / "images" / name).read_bytes() != (report / name).read_bytes()]
    assert old == [], "run `python docs/generate.py`"


@pytest.mark.parametrize("page", [*PAGES, *ROOT_PAGES], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    """Each relative link names a file that exists, and each anchor a heading of it."""
    for target in LINK.findall(page.read_text()):
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path.read_text()), target


def test_every_page_can_be_found():
    """The README and the navigation of the site name every page."""
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in DOCS.glob("*.md"):
        assert f"docs/{page.name}" in (ROOT / "README.md").read_text()
        assert f": {page.name}" in navigation


@pytest.mark.parametrize("page", ["choosing-alpha.md", "python.md"])
def test_python_blocks_print_what_stands_below_them(page):
    """The blocks of a page, run one after the other in one process at the root."""
    pairs = printed_by((DOCS / page).read_text(), "python")
    code = "\n".join(code for code, _ in pairs)
    done = subprocess.run([sys.executable, "-"], input=code, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "".join(output for _, output in pairs)), done.stderr


def test_the_table_of_metrics_is_what_the_server_has(client):
    """The names of the table are those of /metrics, and every metric that is mentioned is in it."""
    listed = re.findall(r"^\| `(oddigit_\w+)`", TEXT, re.MULTILINE)
    found = text_string_to_metric_families(client.get("/metrics").text)
    there = {family.name + ("_total" if family.type == "counter" else "") for family in found}
    assert len(set(listed)) == len(listed)
    assert {name for name in there if name.startswith("oddigit_") and not name.endswith("_created")} == set(listed)
    assert set(re.findall(r"`(oddigit_\w+)`", TEXT)) == set(listed)


def test_every_warning_is_explained():
    """The table of warnings has every code."""
    codes = set(re.findall(r"^\| `(\w+)(?:: N)?` \|", (DOCS / "uploads.md").read_text(), re.MULTILINE))
    assert codes == {*WORDS, "several_frames", "several_glyphs"}


def test_every_alert_has_its_advice():
    """The table of alerts has the rules of alerts.yml, in their order."""
    rules = (ROOT / "app/serving/telemetry/dashboards/alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", rules)
    assert re.findall(r"^\| `(Oddigit\w+)` \|", TEXT, re.MULTILINE) == alerts


def test_the_figures_of_the_shipped_detector_are_those_of_its_card():
    """False alarms, interval and version."""
    card = load_card(find(SHIPPED, "mnist"))
    rates = card.metrics["normal_test"]["false_alarm_rate"].values()
    low, high = card.metrics["false_alarm_rate_90_percent_interval"]
    page = (DOCS / "choosing-alpha.md").read_text()
    assert "| flagged | " + " | ".join(f"{rate:.2%}".replace("%", " %") for rate in rates) + " |" in page
    assert f"between {low:.2%} and {high:.2%}".replace("%", " %") in page
    assert f"`mnist/{card.version}`" in (DOCS / "uploads.md").read_text()
    answer = json.loads(re.search(r"^```json\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)[1])
    assert answer["threshold"] == pytest.approx(card.threshold, rel=1e-3)
