import re
import shutil
import threading
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from conftest import make_bundle
from live import serving

from app.detection import store

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FILES = {
    "/": "text/html",
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/docs": "text/html",
    "/docs.css": "text/css",
    "/docs.js": "text/javascript",
}
KEY = "x" * 20


@pytest.mark.parametrize("path", FILES)
def test_the_page_and_its_files_are_served_under_a_policy(client, path):
    """Each in its type, guessed by nobody, and allowed to load from this server alone, and to be framed by none."""
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(FILES[path])
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in response.headers["content-security-policy"]


def test_the_page_names_nothing_of_elsewhere(client):
    """No address of another server, no code and no style inside the page: the policy would block them."""
    for name in ("", "docs"):
        page = client.get(f"/{name}").text
        style, script = (client.get(f"/{name or 'page'}.{kind}").text for kind in ("css", "js"))
        assert not re.search(r"(https?:)?//[a-z0-9]", page + style)
        assert not re.search(r"https?://", script)
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page)
        assert "eval(" not in script
        assert "innerHTML" not in script


def test_the_page_asks_for_what_is_there(client):
    """Every file and every page that it links to is served."""
    for link in re.findall(r'(?:src|href)="([^"]+)"', client.get("/").text + client.get("/docs").text):
        if not link.startswith("data:"):
            assert client.get(f"/{link}").status_code == 200, link


def test_the_page_has_a_text_for_those_who_do_not_see_it(client):
    """Canvases have labels, images an alt attribute, buttons a text, the page a language and a title."""
    page = client.get("/").text
    assert 'lang="en"' in page
    assert re.search(r"<title>\w+", page)
    assert all("aria-label" in tag for tag in re.findall(r"<canvas[^>]*>", page))
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", page))
    assert "user-scalable=no" not in page


# ------------------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not shutil.which(CHROMIUM):
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, server):
    """The page, open; on leaving, nothing may have gone wrong in it."""
    opened = browser.new_page()
    errors = []
    opened.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.goto(server.url)
    opened.locator("#model").filter(has_text="mnist/").wait_for()
    yield opened
    opened.close()
    assert errors == []


def draw(page, *points):
    """One stroke of the pen through these points of the paper, in its pixels."""
    box = page.locator("#paper").bounding_box()
    (x, y), *others = [(box["x"] + x, box["y"] + y) for x, y in points]
    page.mouse.move(x, y)
    page.mouse.down()
    for x, y in others:
        page.mouse.move(x, y, steps=8)
    page.mouse.up()


def verdict(page, text):
    """Wait until the verdict is `text`."""
    page.locator("#verdict").get_by_text(text, exact=True).wait_for()


def pictures(page):
    """How large the three pictures of the answer are, each as it was decoded."""
    return [
        page.locator(f"#{name}").evaluate("image => image.naturalWidth") for name in ("input", "reconstruction", "error_map")
    ]


def test_a_drawn_seven_is_a_digit(page):
    """Two strokes of the pen, and the page says so, with score, pictures and a place in the plane."""
    verdict(page, "Nothing yet")
    draw(page, (70, 60), (200, 60), (120, 230))
    verdict(page, "A digit")
    assert re.fullmatch(r"Score \d+\.\d\d, threshold \d+\.\d\d\. .+", page.locator("#reason").inner_text())
    assert pictures(page) == [28, 28, 28]
    assert "inverted" in page.locator("#notes").inner_text()


def test_an_opened_cat_is_none(page, samples):
    """A file from the disk is shown, judged and flagged; so is a digit, the other way."""
    page.set_input_files("#file", samples / "cat.png")
    verdict(page, "Not a digit")
    assert "anomaly" in page.locator("#bar").get_attribute("class")
    page.set_input_files("#file", samples / "seven.png")
    verdict(page, "A digit")
    page.set_input_files("#file", samples / "cat.png")  # the same file once more
    verdict(page, "Not a digit")


def test_clearing_takes_everything_back(page, samples):
    """Decision, pictures and notes are those of an empty paper, and no late answer fills them again."""
    page.set_input_files("#file", samples / "cat.png")
    verdict(page, "Not a digit")
    draw(page, (70, 60), (200, 60))
    page.locator("#clear").click()
    page.wait_for_timeout(500)
    assert page.locator("#verdict").inner_text() == "Nothing yet"
    assert page.locator("#notes").inner_text() == ""
    assert pictures(page) == [0, 0, 0]


def test_the_plane_draws_where_one_points(page):
    """Moving over the map shows what the network would draw there."""
    drawn = page.locator("#decoded[src^='data:image/png']")
    for step in range(100):  # the map may still be loading
        page.locator("#map").hover(position={"x": 100 + step, "y": 100})
        page.wait_for_timeout(100)
        if drawn.count():
            break
    assert page.locator("#decoded").evaluate("image => image.naturalWidth") == 28


def test_the_page_asks_the_chosen_model_and_is_not_counted(browser, tmp_path, samples, shipped_store):
    """The list names every model; the chosen one answers, with its own map; no request of the page counts as traffic."""
    root = tmp_path / "store"
    shutil.copytree(shipped_store, root)
    publish_wide(root)
    with serving(tmp_path / "log", "--store", str(root), ODDIGIT_DRAIN_S="0") as server:
        page = browser.new_page()
        errors, sent = [], []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: sent.append(request.url))
        page.goto(server.url)
        page.set_input_files("#file", samples / "cat.png")
        verdict(page, "Not a digit")
        page.select_option("#models", "wide")
        page.locator("#model").filter(has_text="wide/1").wait_for()
        page.wait_for_timeout(500)
        assert any("/score?watch=0&model=wide" in url for url in sent)
        page.locator("#map").hover(position={"x": 90, "y": 100})
        page.locator("#map").hover(position={"x": 100, "y": 110})
        page.locator("#decoded[src^='data:image/png']").wait_for()
        for name in ("mnist", "wide"):
            assert httpx.get(f"{server.url}/drift", params={"model": name}).json()["images"] == 0
        page.close()
    assert errors == []


def publish_wide(root):
    """Publish the detector `wide`, whose embeddings have three coordinates, with a map of them."""
    bundle = make_bundle(1, "wide", latent_dim=3)
    embeddings = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32) * [3, 2, 1]

    def write_report(folder):
        np.savez(folder / "latent.npz", embeddings=embeddings, labels=np.arange(60) % 10)

    store.publish(bundle, root, write_report)


def test_what_is_no_image_is_told_in_words(browser, server, tmp_path):
    """A text file gives no answer but the server's sentence, and no broken pictures."""
    page = browser.new_page()
    page.goto(server.url)
    (tmp_path / "notes.txt").write_text("no image")
    page.set_input_files("#file", tmp_path / "notes.txt")
    verdict(page, "No answer")
    assert "notes.txt" in page.locator("#reason").inner_text()
    page.close()


def test_the_page_fits_a_phone(browser, server):
    """At the width of a small phone nothing sticks out to the side."""
    page = browser.new_page(viewport={"width": 360, "height": 740})
    page.goto(server.url)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 360
    page.close()


def test_without_answers_the_page_says_so(browser, tiny_store, tmp_path):
    """Where a key is asked for, both pages are public; they say that none was sent, and /docs takes one."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_API_KEYS": f"k:{KEY}", "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path / "log", **variables) as server:
        assert [httpx.get(server.url + path).status_code for path in FILES] == [200] * len(FILES)
        page = browser.new_page()
        page.goto(f"{server.url}/docs")
        page.get_by_text("Send a key").wait_for()
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Enter")
        send(page, "get_model").get_by_text("200 OK").wait_for()
        page.goto(server.url)
        draw(page, (70, 60), (200, 60))
        verdict(page, "No answer")
        assert "key" in page.locator("#reason").inner_text()
        page.close()


@contextmanager
def prefix_proxy(server, prefix):
    """The address of a reverse proxy that removes `prefix` from every path and knows no path without it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.forward()

        def do_POST(self):
            self.forward()

        def forward(self):
            if not self.path.startswith(prefix + "/"):
                self.send_error(404)
                return
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
            answer = httpx.request(self.command, server.url + self.path.removeprefix(prefix), headers=headers, content=body)
            self.send_response(answer.status_code)
            for name in ("content-type", "content-security-policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *arguments):
            pass

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}{prefix}"
    finally:
        proxy.shutdown()
        proxy.server_close()


@pytest.fixture(params=["", "/some/prefix"], ids=["direct", "behind-a-prefix"])
def address(request, browser, server):
    """A page, and the address that it opens: the server's own or a proxy's with a path prefix. On leaving, every request of
    the page went to that address."""
    with prefix_proxy(server, request.param) if request.param else nullcontext(server.url) as url:
        page = browser.new_page()
        requests = []
        page.on("request", lambda sent: requests.append(sent.url))
        yield page, url
        page.close()
    assert requests
    assert [sent for sent in requests if not sent.startswith((f"{url}/", "data:"))] == []


def send(page, operation, **values):
    """Open an operation of /docs, fill its parameters in and send it; the place where the response appears."""
    view = page.locator(f"#{operation}")
    view.locator("summary").click()
    for name, value in values.items():
        view.get_by_label(name).fill(value)
    view.get_by_role("button", name="Send").click()
    return view.locator(".result")


def test_the_api_page_lists_and_sends_every_kind_of_request(address, client, samples):
    """Each operation of the document is there; JSON, pictures and uploads come back; no request goes elsewhere."""
    page, url = address
    page.goto(f"{url}/docs")
    page.locator("details").first.wait_for()
    items = client.get("/openapi.json").json()["paths"].values()
    ids = {operation["operationId"] for item in items for operation in item.values()}
    assert set(page.locator("details").evaluate_all("all => all.map(one => one.id)")) == ids
    send(page, "get_readiness").get_by_text('"status": "ready"').wait_for()
    send(page, "decode").get_by_text('"images"').wait_for()
    send(page, "get_report_picture", picture="loss.png").locator("img[src^='data:image/png']").wait_for()
    page.locator("#score summary").click()
    page.locator("#score input[type=file]").set_input_files(samples / "seven.png")
    assert f"curl -X POST '{url}/score' -F 'file=@seven.png'" in page.locator("#score .curl").inner_text()
    page.locator("#score button").click()
    page.locator("#score .result").get_by_text('"is_anomaly": false').wait_for()


def test_the_demo_page_works_under_a_prefix(address, samples):
    """Its files, questions and map come from below the prefix."""
    page, url = address
    page.goto(f"{url}/")
    page.locator("#model").filter(has_text="mnist/").wait_for()
    page.set_input_files("#file", samples / "cat.png")
    verdict(page, "Not a digit")
