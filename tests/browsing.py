"""The demo page in a real Chromium: opening it, drawing on it, waiting for its verdict."""

import shutil
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PROBLEM = (
    b'{"type": "/problems/unavailable", "title": "Busy", "status": 503, "detail": "busy", "instance": "", "request_id": "1"}'
)


@contextmanager
def chromium():
    """A headless Chromium; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not shutil.which(CHROMIUM):
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(browser, url, *, expected=(), script="", **options):
    """The page at `url`. On leaving, its console must be silent, but for texts that hold one of `expected`, and every request
    must have gone to the server of `url`. Motion is reduced: the page draws no example by itself. `script` runs
    before the scripts of the page."""
    page = browser.new_page(**{"reduced_motion": "reduce", **options})
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.sent = requests
    page.add_init_script(script)
    page.goto(url)
    yield page
    page.close()
    assert [text for text in errors if not any(part in text for part in expected)] == []
    home = "/".join(url.split("/")[:3])
    assert [sent for sent in requests if not sent.startswith((f"{home}/", "data:", "blob:"))] == []


def draw(page, strokes):
    """Draw polylines on the paper, in shares of its side, with the mouse."""
    page.locator("#paper").scroll_into_view_if_needed()
    box = page.locator("#paper").bounding_box()
    for stroke in strokes:
        (x, y), *others = [(box["x"] + px * box["width"], box["y"] + py * box["height"]) for px, py in stroke]
        page.mouse.move(x, y)
        page.mouse.down()
        for x, y in others:
            page.mouse.move(x, y)
        page.mouse.up()


def state(page, name):
    """Wait until the verdict's state is `name`."""
    page.locator(f"#verdict[data-state={name}]").wait_for()


def final_state(page):
    """The state of the verdict once no answer is to come any more."""
    page.locator("#answer[aria-busy=false] #verdict:not([data-state=empty])").wait_for()
    return page.locator("#verdict").get_attribute("data-state")


def traffic(url):
    """Everything in which a server records the images that count as traffic: drift of each model, and metrics of verdicts."""
    names = [model["name"] for model in httpx.get(f"{url}/models").json()["models"]]
    drift = {name: httpx.get(f"{url}/drift", params={"model": name}).json() for name in names}
    recorded = ("oddigit_images_total", "oddigit_score", "oddigit_p_value", "oddigit_drift")
    return drift, [line for line in httpx.get(f"{url}/metrics").text.splitlines() if line.startswith(recorded)]


class Proxy:
    """A reverse proxy. `mode` is ok, slow (no answer before the mode changes), dropped (never an answer), html (an error page)
    or busy (503 with Retry-After)."""

    def __init__(self, server, prefix=""):
        proxy = self
        self.mode, self.server, self.prefix = "ok", server, prefix

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if proxy.mode == "dropped":
                    self.close_connection = True
                elif proxy.mode == "html":
                    self.answer(502, {"content-type": "text/html"}, b"<h1>Bad gateway</h1>")
                elif proxy.mode == "busy":
                    self.answer(503, {"content-type": "application/problem+json", "retry-after": "1"}, PROBLEM)
                else:
                    while proxy.mode == "slow":
                        time.sleep(0.02)
                    proxy.forward(self, body)

            do_POST = do_GET

            def answer(self, status, headers, content):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *arguments):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}{prefix}"

    def forward(self, handler, body):
        if not handler.path.startswith(f"{self.prefix}/"):
            handler.answer(404, {"content-type": "text/html"}, b"")
            return
        headers = {
            name: value for name, value in handler.headers.items() if name.lower() not in ("connection", "accept-encoding")
        }
        path = handler.path.removeprefix(self.prefix)
        answer = httpx.request(handler.command, self.server.url + path, headers=headers, content=body)
        kept = ("content-type", "content-security-policy", "retry-after")
        handler.answer(
            answer.status_code, {name: answer.headers[name] for name in kept if name in answer.headers}, answer.content
        )

    def __enter__(self):
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()
