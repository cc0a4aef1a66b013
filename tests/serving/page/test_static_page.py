"""The page as static files, in Chromium, with the real onnxruntime-web."""

import base64
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from browsing import draw, final_state, opened
from drawings import DIGITS, STRANGE
from live import ROOT
from strokes import png, stroke_images

RUNTIME = "onnxruntime-web@1.30"
SCORE = """async texts => {
  const { respond } = await import("./page/local.js"), form = new FormData();
  for (const text of texts) form.append("file", new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], "a.png"));
  return (await (await respond("inspect?watch=0", { body: form })).json()).results;
}"""


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def runtime(request):
    """The folder of onnxruntime-web, kept for the next run."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    folder = request.config.cache.mkdir("onnxruntime-web")
    command = ["npm", "install", "--silent", "--prefer-offline", "--prefix", folder, RUNTIME]
    installed = subprocess.run(command, capture_output=True, text=True)
    if installed.returncode:
        pytest.skip(f"npm cannot install {RUNTIME}: {installed.stderr[-200:]}")
    return folder / "node_modules" / "onnxruntime-web" / "dist"


@pytest.fixture(scope="module")
def static_page(runtime, tmp_path_factory):
    """The address of the page, which a server of files serves."""
    folder = tmp_path_factory.mktemp("page")
    subprocess.run([sys.executable, "-m", "app", "page", "--to", folder, "--runtime", runtime], cwd=ROOT, check=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=folder)) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/"
        http.shutdown()


def test_scores_of_28x28_images_are_those_of_the_server(browser, static_page, server):
    """Scores, p-values, embeddings and steps, also of images off the middle."""
    images = np.concatenate([stroke_images(30, seed=8), np.roll(stroke_images(10, seed=9), 3, axis=1)])
    files = [png(image) for image in images]
    with opened(browser, static_page) as page:
        found = page.evaluate(SCORE, [base64.b64encode(file).decode() for file in files])
    sent = [("file", ("a.png", file, "image/png")) for file in files]
    expected = httpx.post(f"{server.url}/inspect?watch=0", files=sent).json()["results"]
    for field in ("score", "p_value", "embedding", "reconstruction_error"):
        np.testing.assert_allclose([one[field] for one in found], [one[field] for one in expected], rtol=1e-4, atol=1e-4)
    assert [one["preprocess"] for one in found] == [one["preprocess"] for one in expected]


def test_drawings_are_judged_and_the_views_open_without_a_server(browser, static_page, samples):
    """A seven and a cat, the map, files and the card; nothing is asked of a server of Oddigit."""
    with opened(browser, static_page) as page:
        for strokes, expected in ((DIGITS[7], "normal"), (STRANGE["cat"], "anomaly")):
            page.locator("#clear").click()
            draw(page, strokes)
            assert final_state(page) == expected
        page.locator("#map").scroll_into_view_if_needed()
        page.locator("#map[data-state=ready]").wait_for()
        page.set_input_files("#file", [samples / "seven.png", samples / "cat.png"])
        page.locator("#files-summary").get_by_text("2 of 2 done").wait_for()
        page.get_by_role("link", name="Model", exact=True).click()
        page.locator(".report img").first.wait_for()
