"""The demo page in Chromium: how long after pen up the verdict stands, how many drawings are judged as they should be.

    python benchmarks/page.py --rounds 50

Needs Chromium at /usr/bin/chromium and the environment of `make test`. The mouse rests after each drawing, and times are taken
inside the page, because a script that looks at the page keeps it from being idle.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from drawings import DIGITS, HANDS, STRANGE, in_hand
from live import serving

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
WATCH = """() => {
  window.seen = { up: 0, answered: 0, long: [], sent: [] };
  const fetched = window.fetch;
  window.fetch = (...call) => { seen.sent.push(performance.now()); return fetched(...call); };
  addEventListener("pointerup", () => { seen.up = performance.now(); }, true);
  const answered = new MutationObserver(() => { seen.answered = performance.now(); });
  answered.observe(document.getElementById("reason"), { childList: true });
  const tasks = new PerformanceObserver((list) => { for (const task of list.getEntries()) seen.long.push(task.duration); });
  tasks.observe({ type: "longtask" });
}"""


def draw(page: Page, strokes: list[Any]) -> None:
    """Draw strokes on a cleared paper with the mouse."""
    page.locator("#clear").click()
    box = page.locator("#paper").bounding_box()
    assert box is not None
    for stroke in strokes:
        (x, y), *others = [(box["x"] + px * box["width"], box["y"] + py * box["height"]) for px, py in stroke]
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in others:
            page.mouse.move(x, y, steps=4)
        page.mouse.up()


def measure(page: Page, strokes: list[Any]) -> tuple[float, str]:
    """Milliseconds from pen up to the final answer, and the state of the verdict."""
    draw(page, strokes)
    page.wait_for_timeout(800)  # the mouse rests, nothing looks at the page
    seen = page.evaluate("seen")
    return max(0.0, seen["answered"] - seen["up"]), page.locator("#verdict").get_attribute("data-state") or ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50, help="drawings whose latency is measured")
    rounds = parser.parse_args().rounds
    jobs = [
        (f"{digit}, {hand}", in_hand(strokes, **style), "normal")
        for hand, style in HANDS.items()
        for digit, strokes in DIGITS.items()
    ]
    jobs += [(name, strokes, "anomaly") for name, strokes in STRANGE.items()]
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "log", ODDIGIT_DRAIN_S="0") as server,
        sync_playwright() as playwright,
    ):
        page = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS).new_page(reduced_motion="reduce")
        page.goto(server.url)
        page.evaluate(WATCH)
        measure(page, jobs[0][1])
        chosen = (jobs * rounds)[: max(rounds, len(jobs))]
        results = [(name, expected, *measure(page, strokes)) for name, strokes, expected in chosen]
        seen = page.evaluate("seen")
    report(results, seen, len(jobs))


def report(results: list[tuple[str, str, float, str]], seen: dict[str, Any], drawings: int) -> None:
    times = np.array([milliseconds for _, _, milliseconds, _ in results])
    print(f"pen up to verdict, {len(times)} drawings: median {np.median(times):.0f} ms, maximum {times.max():.0f} ms")
    shortest = np.diff(seen["sent"]).min()
    print(f"long tasks (over 50 ms): {len(seen['long'])}; shortest time between two requests: {shortest:.0f} ms")
    for expected, words in (("normal", "digits accepted"), ("anomaly", "other drawings flagged")):
        group = [(name, state) for name, wanted, _, state in results[:drawings] if wanted == expected]
        missed = [name for name, state in group if state != expected]
        print(f"{words}: {len(group) - len(missed)} of {len(group)}" + (f"; not: {', '.join(missed)}" if missed else ""))


if __name__ == "__main__":
    main()
