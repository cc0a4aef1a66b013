import re
from contextlib import nullcontext

import httpx
import pytest
from browsing import Proxy, opened
from live import ROOT, serving

STATIC = ROOT / "app" / "serving" / "static"
MODULES = sorted(f"/page/{file.name}" for file in (STATIC / "page").iterdir())
FILES = {
    "/": "text/html",
    "/page.css": "text/css",
    "/page.js": "text/javascript",
    "/docs": "text/html",
    "/docs.css": "text/css",
    "/docs.js": "text/javascript",
    **dict.fromkeys(MODULES, "text/javascript"),
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


def test_the_pages_name_nothing_of_elsewhere(client):
    """No address of another server, no code and no style inside the pages: the policy would block them."""
    for path, kind in FILES.items():
        text = client.get(path).text
        if kind == "text/javascript":
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)  # the name of SVG, which is never fetched
            assert "eval(" not in text
            assert "innerHTML" not in text
        else:
            assert not re.search(r"(https?:)?//[a-z0-9]", text)
            assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", text)


def test_the_pages_files_are_sent_once_and_compressed(client):
    """A second visit gets 304; everything together is at most 150 KB, and less on the way."""
    sent = 0
    for path in FILES:
        first = client.get(path)
        assert first.headers["content-encoding"] == "gzip"
        sent += int(first.headers["content-length"])
        again = client.get(path, headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert "default-src" in again.headers["content-security-policy"]
    assert sum(file.stat().st_size for file in STATIC.rglob("*.*")) <= 150_000
    assert sent < 60_000


@pytest.mark.parametrize("name", ["no.js", "..%2findex.html", "index.html"])
def test_only_the_modules_of_the_page_are_there(client, name):
    """Other names below /page/ are not found."""
    assert client.get(f"/page/{name}").status_code == 404


def test_the_page_asks_for_what_is_there(client):
    """Every file and every page that it links to is served."""
    for link in re.findall(r'(?:src|href)="([^"]+)"', client.get("/").text + client.get("/docs").text):
        if not link.startswith(("data:", "#")):
            assert client.get(f"/{link}").status_code == 200, link


def test_the_page_has_a_text_for_those_who_do_not_see_it(client):
    """Canvases have labels, images an alt attribute, buttons a text, the page a language and a title."""
    page = client.get("/").text
    assert 'lang="en"' in page
    assert re.search(r"<title>\w+", page)
    assert all("aria-label" in tag or "aria-hidden" in tag for tag in re.findall(r"<canvas[^>]*>", page))
    assert all("alt=" in tag for tag in re.findall(r"<img[^>]*>", page))
    assert "user-scalable=no" not in page


# ------------------------------------------------------------------------------------------------------------- in a browser


def test_the_api_page_takes_a_key(browser, tiny_store, tmp_path):
    """Where a key is asked for, both pages and their files are public; /docs says that none was sent, and takes one."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_API_KEYS": f"k:{KEY}", "ODDIGIT_DRAIN_S": "0"}
    with (
        serving(tmp_path / "log", **variables) as server,
        opened(browser, f"{server.url}/docs", expected=["401"]) as page,
    ):
        assert [httpx.get(server.url + path).status_code for path in FILES] == [200] * len(FILES)
        page.get_by_text("Send a key").wait_for()
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Enter")
        send(page, "get_model").get_by_text("200 OK").wait_for()


@pytest.fixture(params=["", "/some/prefix"], ids=["direct", "behind-a-prefix"])
def docs(request, browser, server):
    """The API page, opened from the server itself or through a proxy with a path prefix, and its address."""
    with (
        Proxy(server, request.param) if request.param else nullcontext(server) as source,
        opened(browser, f"{source.url}/docs") as page,
    ):
        yield page, source.url


def send(page, operation, **values):
    """Open an operation of /docs, fill its parameters in and send it; the place where the response appears."""
    view = page.locator(f"#{operation}")
    view.locator("summary").click()
    for name, value in values.items():
        view.get_by_label(name).fill(value)
    view.get_by_role("button", name="Send").click()
    return view.locator(".result")


def test_the_api_page_lists_and_sends_every_kind_of_request(docs, client, samples):
    """Each operation of the document is there; JSON, pictures and uploads come back; no request goes elsewhere."""
    page, url = docs
    page.locator("details").first.wait_for()
    items = client.get("/openapi.json").json()["paths"].values()
    ids = {operation["operationId"] for item in items for operation in item.values()}
    assert set(page.locator("details").evaluate_all("all => all.map(one => one.id)")) == ids
    send(page, "get_readiness").get_by_text('"status": "ready"').wait_for()
    send(page, "decode").get_by_text('"images"').wait_for()
    send(page, "v2_model_infer", model="mnist").get_by_text('"is_anomaly"').wait_for()
    send(page, "get_report_picture", picture="loss.png").locator("img[src^='data:image/png']").wait_for()
    page.locator("#score summary").click()
    page.locator("#score input[type=file]").set_input_files(samples / "seven.png")
    assert f"curl -X POST '{url}/score' -F 'file=@seven.png'" in page.locator("#score .curl").inner_text()
    page.locator("#score button").click()
    page.locator("#score .result").get_by_text('"is_anomaly": false').wait_for()


def test_the_api_page_says_that_its_description_did_not_come(browser, server):
    """Without a connection the page is not empty."""
    with opened(browser, f"{server.url}/docs", expected=["Failed to load resource"]) as page:
        page.route("**/openapi.json", lambda route: route.abort())
        page.reload()
        page.get_by_text("could not be loaded: Failed to fetch").wait_for()
