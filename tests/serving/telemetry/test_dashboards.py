import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from live import ROOT

FOLDER = ROOT / "app" / "serving" / "telemetry" / "dashboards"
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")


def documented():
    """The names of the documentation's table of metrics."""
    return set(re.findall(r"^\| `(oddigit_\w+)`", (ROOT / "docs" / "operating.md").read_text(), re.MULTILINE))


@pytest.mark.parametrize("file", ["alerts.yml", "dashboard.json"])
def test_what_is_watched_exists(file):
    """Every metric that a rule or a panel asks for is one of the documentation's; the dashboard shows most of them."""
    used = {re.sub("_(bucket|sum|count)$", "", name) for name in re.findall(r"\boddigit_\w+", (FOLDER / file).read_text())}
    assert used
    assert used <= documented()
    assert file == "alerts.yml" or len(used) > len(documented()) / 2


def test_the_dashboard_is_whole():
    """Each panel has a title and asks for something; none lies on another."""
    panels = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
    cells = [(x, y) for p in panels for x in range(p["gridPos"]["x"], p["gridPos"]["x"] + p["gridPos"]["w"])
             for y in range(p["gridPos"]["y"], p["gridPos"]["y"] + p["gridPos"]["h"])]  # fmt: skip
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["title"]
        assert all(target["expr"] for target in panel["targets"]) and panel["targets"]


def test_the_dashboard_shows_one_instance_or_all():
    """A variable lists the instances, and every metric is filtered by it."""
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "instance"]
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            metrics = re.findall(r"oddigit_\w+(.{0,24})", target["expr"])
            assert metrics and all(rest.startswith('{instance=~"$instance"') for rest in metrics)


@promtool
@pytest.mark.parametrize(
    "command", [("check", "rules", FOLDER / "alerts.yml"), ("test", "rules", Path(__file__).with_name("alerts.yml"))]
)
def test_the_alerts_are_raised_when_they_should(command):
    """Prometheus's own tool reads the rules, and finds each raised by what it is about, the first time too."""
    done = subprocess.run(["promtool", *map(str, command)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
