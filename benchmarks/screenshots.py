"""Pictures of the demo page: every view on a desktop and a phone, light and dark, and the README's first picture.

    python benchmarks/screenshots.py --to build/screenshots

Needs Chromium at /usr/bin/chromium and the environment of `make test`.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browsing import CHROMIUM, FLAGS
from live import ROOT, serving

SAMPLES = sorted((ROOT / "tests" / "samples").glob("*.*g"))
WINDOWS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}


def example(name: str) -> Callable[[Page, str], None]:
    """Draw an example and scroll through the page, so that the map is loaded."""

    def show(page: Page, url: str) -> None:
        page.goto(url)
        page.get_by_label(f"Example: {name}").click()
        page.locator("#answer[aria-busy=false] #verdict:not([data-state=empty])").wait_for()
        page.locator("#map").scroll_into_view_if_needed()
        page.locator("#map[data-state=ready]").wait_for()
        page.wait_for_timeout(600)

    return show


def show_files(page: Page, url: str) -> None:
    page.goto(f"{url}/#files")
    page.locator("#many").set_input_files(SAMPLES)
    page.locator("#files-summary").get_by_text(f"{len(SAMPLES)} of {len(SAMPLES)} done").wait_for()


def show_monitor(page: Page, url: str) -> None:
    page.goto(f"{url}/#monitor")
    for count in (3, 6, 4, 8, 5, 7):
        for sample in SAMPLES[:count]:
            httpx.post(f"{url}/score", files={"file": sample.read_bytes()})
        page.wait_for_timeout(1500)


def show_model(page: Page, url: str) -> None:
    page.goto(f"{url}/#model")
    page.locator(".report img").first.wait_for()
    page.wait_for_timeout(500)


def show_error(page: Page, url: str) -> None:
    page.goto(url)
    page.route("**/inspect*", lambda route: route.fulfill(status=502, content_type="text/html", body="<h1>Bad gateway</h1>"))
    page.get_by_label("Example: a seven").click()
    page.locator("#trouble-text").get_by_text("502").wait_for()


VIEWS: dict[str, Callable[[Page, str], object]] = {
    "empty": lambda page, url: page.goto(url),
    "digit": example("a seven"),
    "anomaly": example("a cat"),
    "files": show_files,
    "monitor": show_monitor,
    "model": show_model,
    "error": show_error,
}


def photograph(browser: Browser, url: str, folder: Path) -> None:
    """Every view in every window and scheme, as folder/view-window-scheme.png."""
    for window, viewport in WINDOWS.items():
        for scheme in ("light", "dark"):
            for view, show in VIEWS.items():
                page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
                show(page, url)
                page.screenshot(path=folder / f"{view}-{window}-{scheme}.png", full_page=True)
                page.close()


def readme_picture(browser: Browser, url: str, path: Path) -> None:
    """A drawn digit above a cat, each with the answer beside it."""
    parts = []
    for name in ("seven", "cat"):
        page = browser.new_page(viewport={"width": 1160, "height": 900}, reduced_motion="reduce")
        page.goto(url)
        page.get_by_label(f"Example: a {name}").click()
        page.locator("#answer[aria-busy=false] #verdict:not([data-state=empty])").wait_for()
        page.wait_for_timeout(500)
        page.mouse.move(0, 0)
        page.locator(".stage").screenshot(path=path)
        with Image.open(path) as part:
            parts.append(part.convert("RGB"))
        page.close()
    picture = Image.new("RGB", (parts[0].width + 48, sum(part.height for part in parts) + 96), parts[0].getpixel((0, 0)))
    top = 24
    for part in parts:
        picture.paste(part, (24, top))
        top += part.height + 48
    picture.quantize(256).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "screenshots", help="folder of the pictures")
    parser.add_argument(
        "--readme", type=Path, default=ROOT / "docs" / "images" / "page.png", help="file of the README's picture"
    )
    options = parser.parse_args()
    for folder in (options.to, options.readme.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder) / "log", ODDIGIT_DRAIN_S="0") as server,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        readme_picture(browser, server.url, options.readme)
        photograph(browser, server.url, options.to)
        browser.close()


if __name__ == "__main__":
    main()
