"""Takes the README's picture of the drawing page: a digit and an anomaly, side by side. Needs Chromium and a running server.

python docs/screenshot.py http://127.0.0.1:8000 [CHROMIUM]
"""

import io
import re
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).parents[1]
SAMPLES = ("seven.png", "cat.png")
VERDICT = re.compile(r"digit|anomal|normal", re.IGNORECASE)
WIDTH, HEIGHT = 1100, 620


def main() -> None:
    url, chromium = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
    shots = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for sample in SAMPLES:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(url)
            page.set_input_files("#file", ROOT / "tests" / "samples" / sample)
            expect(page.locator("#verdict")).to_have_text(VERDICT)
            page.wait_for_timeout(1500)  # until the map is drawn
            shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
        browser.close()
    sheet = Image.new("RGB", (2 * WIDTH, HEIGHT))
    for column, shot in enumerate(shots):
        sheet.paste(shot, (column * WIDTH, 0))
    sheet.quantize(128).save(ROOT / "docs" / "images" / "page.png", optimize=True)


if __name__ == "__main__":
    main()
