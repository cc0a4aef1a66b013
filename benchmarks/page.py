"""The demo page in Chromium: how fast it answers, how many drawings it judges as they should be, what files and play leave.

    python benchmarks/page.py --rounds 50 --files 2000
    python benchmarks/page.py --rounds 0 --files 0 --play 720     # as many drawings as in an hour of one every five seconds

Needs Chromium at /usr/bin/chromium and the environment of `make test`. The mouse rests after each drawing, and times are taken
inside the page, because a script that looks at the page keeps it from being idle.
"""

import argparse
import base64
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parent))
from browsing import CHROMIUM, FLAGS, traffic
from drawings import DIGITS, HANDS, STRANGE, in_hand
from live import serving
from page_drawings import OTHER_DIGITS, OTHER_HANDS, OTHER_THINGS
from strokes import png, stroke_images

WATCH = """() => {
  window.seen = { up: 0, answered: null, long: [], sent: [] };
  const fetched = window.fetch;
  window.fetch = (...call) => {
    if (String(call[0]).includes("inspect")) seen.sent.push(performance.now());
    return fetched(...call);
  };
  const answer = document.getElementById("answer");
  const look = () => {
    if (seen.answered === null && answer.getAttribute("aria-busy") === "false") seen.answered = performance.now();
  };
  addEventListener("pointerup", () => {
    Object.assign(seen, { up: performance.now(), answered: null });
    setTimeout(look);  // the answer to the finished drawing may have come before the pen was lifted
  }, true);
  new MutationObserver(look).observe(answer, { attributeFilter: ["aria-busy"] });
  const tasks = new PerformanceObserver((list) => { for (const task of list.getEntries()) seen.long.push(task.duration); });
  tasks.observe({ type: "longtask" });
}"""
ADD_FILES = """async pictures => {
  const bytes = pictures.map((text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0)));
  const file = (index) => new File([bytes[index % bytes.length]], `${index}.png`, { type: "image/png" });
  (await import("./page/files.js")).add(Array.from({ length: COUNT }, (_, index) => file(index)));
}"""


class Job(NamedTuple):
    """A drawing, and the state that its verdict should have."""

    group: str
    name: str
    strokes: Any
    expected: str


class Seen(NamedTuple):
    """What the page made of a drawing."""

    job: Job
    milliseconds: float  # from pen up to the final answer; NaN where none came
    state: str
    reason: str


def jobs() -> list[Job]:
    """Digits in three hands and ten other drawings, then those that nothing was adjusted to."""
    found = []
    for group, digits, hands in (("digits", DIGITS, HANDS), ("digits of another writer", OTHER_DIGITS, OTHER_HANDS)):
        for hand, style in hands.items():
            found += [Job(group, f"{digit}, {hand}", in_hand(strokes, **style), "normal") for digit, strokes in digits.items()]
    for group, drawings in (("things", STRANGE), ("other things", OTHER_THINGS)):
        found += [Job(group, name, strokes, "anomaly") for name, strokes in drawings.items()]
    return found


def draw(page: Page, strokes: Any) -> None:  # noqa: ANN401
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


def measure(page: Page, job: Job) -> Seen:
    """Draw, and wait until the answer stands."""
    draw(page, job.strokes)
    page.wait_for_timeout(800)  # the mouse rests, nothing looks at the page
    seen = page.evaluate("seen")
    state = page.locator("#verdict").get_attribute("data-state") or ""
    milliseconds = np.nan if seen["answered"] is None else seen["answered"] - seen["up"]
    return Seen(job, milliseconds, state, page.locator("#reason").inner_text())


def measure_drawings(page: Page, rounds: int) -> None:
    """Draw every drawing, and more up to `rounds`; print latency, long tasks and verdicts."""
    page.evaluate(WATCH)
    measure(page, jobs()[0])
    page.evaluate("seen.long.length = seen.sent.length = 0")
    chosen = (jobs() * rounds)[: max(rounds, len(jobs()))]
    results = [measure(page, job) for job in chosen]
    seen, times = page.evaluate("seen"), np.array([each.milliseconds for each in results])
    for name, some in ((f"{len(times)} drawings", times), ("the first 50 of them", times[:50])):
        told = f"median {np.nanmedian(some):.0f} ms, maximum {np.nanmax(some):.0f} ms, {np.isnan(some).sum()} without an answer"
        print(f"pen up to verdict, {name}: {told}")
    shortest = np.diff(seen["sent"]).min()
    print(f"long tasks (over 50 ms): {len(seen['long'])}; shortest time between two requests: {shortest:.0f} ms")
    for group in dict.fromkeys(job.group for job in jobs()):
        members = [each for each in results[: len(jobs())] if each.job.group == group]
        missed = [each for each in members if each.state != each.job.expected or np.isnan(each.milliseconds)]
        word = "accepted" if members[0].job.expected == "normal" else "flagged"
        print(f"{group}, {word}: {len(members) - len(missed)} of {len(members)}")
        for each in missed:
            print(f"    {each.job.name}: {each.reason}")


def measure_files(page: Page, count: int) -> None:
    """Score `count` different files and remove them; print long tasks and the memory of the tab before, with and after them."""
    pictures = [base64.b64encode(png(image)).decode() for image in stroke_images(min(count, 500), seed=7)]
    page.goto(f"{page.url.partition('#')[0]}#files")
    page.evaluate(WATCH)
    page.locator("#files-summary").wait_for(state="attached")
    memory = Memory(page)
    print(f"memory of the tab before: {memory}")
    page.evaluate(ADD_FILES.replace("COUNT", str(count)), pictures)
    page.locator("#files-summary").get_by_text(f"{count:,} of {count:,} done").wait_for(timeout=400_000)
    long = page.evaluate("seen.long")
    print(f"{count} files scored; long tasks (over 50 ms): {len(long)}, the longest {max(long, default=0):.0f} ms")
    print(f"with the files: {memory}")
    page.locator("#files-clear").click()
    page.wait_for_timeout(1000)
    print(f"after removing them: {memory}")


class Memory:
    """The memory of a tab, as text: after a garbage collection, JavaScript objects and the whole process."""

    def __init__(self, page: Page) -> None:
        assert page.context.browser is not None
        self._tab = page.context.new_cdp_session(page)
        self._browser = page.context.browser.new_browser_cdp_session()
        self._tab.send("Performance.enable")

    def __str__(self) -> str:
        self._tab.send("HeapProfiler.collectGarbage")
        metrics = {each["name"]: each["value"] for each in self._tab.send("Performance.getMetrics")["metrics"]}
        processes = self._browser.send("SystemInfo.getProcessInfo")["processInfo"]
        private = sum(private_mib(each["id"]) for each in processes if each["type"] == "renderer")
        heap, nodes = metrics["JSHeapUsedSize"] / 2**20, metrics["Nodes"]
        return f"{heap:.1f} MiB of objects, {nodes:.0f} nodes, {private:.0f} MiB in the tab's process"


def private_mib(process: int) -> float:
    """MiB that belong to a process alone; 0 where it cannot be read."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def measure_play(page: Page, url: str, drawings: int) -> None:
    """Draw again and again; print what that left in /drift and in the metrics of verdicts."""
    before, every = traffic(url), jobs()
    for index in range(drawings):
        draw(page, every[index % len(every)].strokes)
    page.locator("#answer[aria-busy=false]").wait_for()
    after, lines = traffic(url), httpx.get(f"{url}/metrics").text.splitlines()
    answers = [line for line in lines if line.startswith('oddigit_requests_total{route="/inspect"')]
    print(f"{drawings} drawings played:", *answers)
    print("drift and metrics of verdicts: " + ("unchanged" if before == after else f"before {before}, after {after}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50, help="drawings that are timed, each at least once; 0: none")
    parser.add_argument("--files", type=int, default=2000, help="files that are dropped")
    parser.add_argument("--play", type=int, default=0, help="drawings after which /drift is compared")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "log", ODDIGIT_DRAIN_S="0") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)

        def on_page(work: Callable[[Page], None]) -> None:
            page = browser.new_page(reduced_motion="reduce")
            page.goto(server.url)
            work(page)
            page.close()

        if options.rounds:
            on_page(lambda page: measure_drawings(page, options.rounds))
        if options.files:
            on_page(lambda page: measure_files(page, options.files))
        if options.play:
            on_page(lambda page: measure_play(page, server.url, options.play))
        browser.close()


if __name__ == "__main__":
    main()
