"""What the page does when it gets no good answer: it says so and, where the cause passes, recovers without a reload."""

import pytest
from browsing import PROBLEM, Proxy, draw, final_state, opened, state
from drawings import DIGITS
from live import serving

KEY = "x" * 20
BUSY = {"content-type": "application/problem+json", "retry-after": "1"}
NETWORK = ["Failed to load resource"]


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [("dropped", "does not answer"), ("html", "error page (status 502)"), ("busy", "is busy")],
)
def test_the_page_recovers_by_itself(browser, server, mode, sentence):
    """A server that is gone, a proxy's error page, an overload: a sentence, dimmed results, then the answer."""
    with Proxy(server) as proxy, opened(browser, proxy.url, expected=NETWORK) as page:
        page.locator("#histogram .bar").first.wait_for()
        proxy.mode = mode
        draw(page, DIGITS[7])
        page.locator("#trouble-text").get_by_text(sentence).wait_for()
        state(page, "error")
        assert "stale" in page.locator("body").get_attribute("class")
        proxy.mode = "ok"
        state(page, "normal")
        page.locator("#trouble").wait_for(state="hidden")


def test_a_slow_server_is_waited_for(browser, server):
    """After three seconds the page says so; the answer still comes."""
    with Proxy(server) as proxy, opened(browser, proxy.url) as page:
        page.locator("#histogram .bar").first.wait_for()
        proxy.mode = "slow"
        draw(page, DIGITS[1])
        page.locator("#reason").get_by_text("The server is slow").wait_for()
        proxy.mode = "ok"
        state(page, "normal")


def test_an_empty_paper_waits_for_no_slow_answer(page):
    """The paper is cleared while a slow answer is awaited: no sentence about the server appears."""
    held = []
    page.route("**/inspect*", lambda route: held.append(route))
    page.clock.install()
    with page.expect_request("**/inspect*"):
        draw(page, [[(0.5, 0.5)]])
    page.locator("#clear").click()
    page.clock.run_for(5000)
    assert "Draw on the white square" in page.locator("#reason").inner_text()
    for route in held:
        route.continue_()


def test_the_page_opens_while_the_server_is_away(browser, server):
    """Model, histogram and detectors are loaded when it is back."""
    with opened(browser, server.url, expected=NETWORK) as page:
        for path in ("model", "models", "model/calibration"):
            page.route(f"**/{path}", lambda route: route.fulfill(status=503, headers=BUSY, body=PROBLEM))
        page.reload()
        page.locator("#trouble-text").get_by_text("is busy").wait_for()
        assert page.locator("#histogram .bar").count() == 0
        page.unroute_all()
        page.locator("#model").filter(has_text="mnist/").wait_for()
        page.locator("#histogram .bar").first.wait_for()
        page.locator("#trouble").wait_for(state="hidden")


@pytest.fixture(scope="module")
def keyed_server(tiny_store, tmp_path_factory):
    """A server that needs a key."""
    variables = {"ODDIGIT_STORE": str(tiny_store), "ODDIGIT_API_KEYS": f"k:{KEY}", "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path_factory.mktemp("keyed") / "log", **variables) as running:
        yield running


def test_a_key_is_asked_for_and_kept_in_the_tab(browser, keyed_server):
    """A wrong key is asked for again; the right one lets everything load, also after a reload of the tab."""
    with opened(browser, keyed_server.url, expected=[*NETWORK, "401"]) as page:
        draw(page, DIGITS[7])
        page.locator("#trouble-text").get_by_text("only with a key").wait_for()
        state(page, "error")
        held = []
        page.route("**/readyz", lambda route: held.append(route))
        with page.expect_response("**/models"):
            page.get_by_role("link", name="Monitor", exact=True).click()
        with page.expect_response("**/readyz"):
            held[0].continue_()
        page.unroute("**/readyz")
        page.evaluate("fetch('readyz')")
        assert page.locator("#key-form").is_visible()  # an answer that needs no key leaves the form
        page.locator("#key").fill("wrong")
        page.locator("#key").press("Enter")
        page.locator("#trouble-text").get_by_text("does not accept the key").wait_for()
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Enter")
        page.locator("#trouble").wait_for(state="hidden")
        page.get_by_role("link", name="Draw", exact=True).click()
        assert final_state(page) in ("normal", "anomaly")
        page.locator("#model").filter(has_text="mnist/1").wait_for()
        page.reload()
        page.locator("#model").filter(has_text="mnist/1").wait_for()
        assert page.locator("#trouble").is_hidden()


def test_a_late_refusal_of_an_old_key_does_not_stop_the_page(browser, keyed_server):
    """A request that was sent with a wrong key, and refused after the right one was entered, is sent again with that one."""
    with opened(browser, keyed_server.url, expected=[*NETWORK, "401"]) as page:
        page.locator("#key-form").wait_for()
        held = []

        def hold(route):
            """Refusals of the wrong key wait until the right one is entered; its first answer lets them go."""
            if route.request.headers.get("x-api-key") == "wrong":
                held.append(route)
            else:
                route.continue_()

        page.route("**/model", hold)
        page.locator("#key").fill("wrong")
        with page.expect_request(
            lambda request: request.headers.get("x-api-key") == "wrong" and request.url.endswith("/model")
        ):
            page.locator("#key").press("Enter")
        page.locator("#key").fill(KEY)
        page.locator("#key").press("Enter")
        page.locator("#trouble").wait_for(state="hidden")
        assert held
        for route in held:
            route.continue_()
        page.locator("#model").filter(has_text="mnist/1").wait_for()
        assert page.locator("#trouble").is_hidden()


def test_the_page_works_under_a_prefix(browser, server, samples):
    """Its files, modules, questions and views come from below the prefix."""
    with Proxy(server, "/some/prefix") as proxy, opened(browser, f"{proxy.url}/") as page:
        page.locator("#model").filter(has_text="mnist/").wait_for()
        page.set_input_files("#file", samples / "cat.png")
        final_state(page)
        for view, mark in (("Files", "#many"), ("Monitor", "#served td"), ("Model", ".report img")):
            page.get_by_role("link", name=view, exact=True).click()
            page.locator(mark).first.wait_for(state="attached")
        assert all(url.startswith((proxy.url, "blob:", "data:")) for url in page.sent)


def test_a_drawing_that_cannot_be_sent_is_told(page, samples):
    """A browser without CompressionStream cannot send strokes, and still sends files."""
    page.evaluate("delete window.CompressionStream")
    draw(page, DIGITS[7])
    assert final_state(page) == "error"
    assert "CompressionStream" in page.locator("#reason").inner_text()
    page.set_input_files("#file", samples / "seven.png")
    state(page, "normal")


def test_a_file_that_is_no_image_is_told_in_words(browser, server, samples, tmp_path):
    """A text file gets the server's sentence, and nothing is left of the answer before it."""
    (tmp_path / "notes.txt").write_text("no image")
    with opened(browser, server.url, expected=["415", "400"]) as page:
        page.set_input_files("#file", samples / "cat.png")
        state(page, "anomaly")
        page.set_input_files("#file", tmp_path / "notes.txt")
        state(page, "error")
        page.locator("#alpha").press("ArrowRight")
        state(page, "error")
        assert "not accepted" in page.locator("#reason").inner_text()
        assert page.locator("#error_map").get_attribute("aria-label") == "Error map: nothing yet"
        assert page.locator("#histogram .yours").get_attribute("visibility") == "hidden"
