"""Drawing on the page: pen, keyboard, undo, examples, links, and the requests that a drawing makes."""

import re

import httpx
import pytest
from browsing import draw, final_state, opened, state, traffic
from drawings import DIGITS, HANDS, STRANGE, in_hand
from PIL import Image
from strokes import encoded

SEVEN, FOUR = DIGITS[7], DIGITS[4]
RECORD_STATES = """document.addEventListener("DOMContentLoaded", () => {
  const verdict = document.getElementById("verdict");
  window.states = [];
  new MutationObserver(() => window.states.push(verdict.dataset.state)).observe(verdict, { attributes: true });
});"""
IS_BLANK = "canvas => !canvas.getContext('2d').getImageData(0, 0, 28, 28).data.some(Boolean)"


def strokes_on(page):
    """Whether the undo button has anything to take back."""
    return page.locator("#undo").is_enabled()


def test_drawn_digits_are_accepted(page):
    """Of ten slanted digits, at least nine are digits to the page, each with score, threshold and pictures."""
    states = []
    for strokes in DIGITS.values():
        page.locator("#clear").click()
        draw(page, in_hand(strokes, **HANDS["slanted"]))
        states.append(final_state(page))
    assert states.count("normal") >= 9
    assert re.search(r"Score \d+\.\d\d, (not )?above the threshold \d+\.\d\d\.", page.locator("#reason").inner_text())
    assert not any(page.locator(f"#{name}").evaluate(IS_BLANK) for name in ("input", "reconstruction", "error_map"))
    assert re.fullmatch(r"[−\d.]+\s+[−\d.]+", page.locator("#numbers").inner_text())


def test_other_drawings_are_flagged(page):
    """Of ten drawings that are no digits, at least seven are flagged."""
    states = []
    for strokes in STRANGE.values():
        page.locator("#clear").click()
        draw(page, strokes)
        states.append(final_state(page))
    assert states.count("anomaly") >= 7


def test_a_drawing_asks_once_for_each_picture(browser, server):
    """While the pen moves, each picture is sent once, one request after the other."""
    with opened(browser, server.url) as page:
        bodies, running, most = [], set(), []
        page.on("request", lambda request: "inspect" in request.url and (running.add(request), most.append(len(running))))
        page.on("requestfinished", lambda request: running.discard(request))
        page.on("request", lambda request: "inspect" in request.url and bodies.append(request.post_data_buffer))
        draw(page, FOUR)
        final_state(page)
        page.wait_for_timeout(300)
        assert 1 <= len(bodies) == len(set(bodies))
        assert max(most) == 1


def test_play_is_not_traffic(browser, server, samples):
    """Drawings, files and all views leave drift and verdict metrics of every detector as they were; another client does not."""
    before = traffic(server.url)
    with opened(browser, server.url) as page:
        for name in ("cat", "star"):
            page.locator("#clear").click()
            draw(page, STRANGE[name])
            final_state(page)
        page.select_option("#models", "mnist-vae")
        page.locator("#model").filter(has_text="mnist-vae/").wait_for()
        page.set_input_files("#file", [samples / "seven.png", samples / "cat.png"])
        page.locator("#files-summary").get_by_text("2 of 2 done").wait_for()
        for view, mark in (("Monitor", "#served td"), ("Model", ".report img")):
            page.get_by_role("link", name=view, exact=True).click()
            page.locator(mark).first.wait_for(state="attached")
        assert sum("inspect" in url for url in page.sent) > 2
    assert traffic(server.url) == before
    httpx.post(f"{server.url}/score", files={"file": (samples / "cat.png").read_bytes()})
    assert traffic(server.url) != before


def test_clearing_takes_everything_back(page, samples):
    """Verdict, pictures and warnings are those of an empty paper, and no late answer fills them again."""
    page.set_input_files("#file", samples / "cat.png")
    final_state(page)
    held = []
    page.route("**/inspect*", lambda route: held.append(route))
    with page.expect_request("**/inspect*"):
        draw(page, SEVEN)
    page.locator("#clear").click()
    state(page, "empty")
    for route in held:
        route.continue_()
    page.wait_for_timeout(300)
    state(page, "empty")
    assert page.locator("#warnings li").count() == 0
    assert all(page.locator(f"#{name}").evaluate(IS_BLANK) for name in ("input", "reconstruction", "error_map"))


def test_pictures_that_are_decoded_late_do_not_fill_an_empty_paper(page):
    """The verdict is shown before the pictures of the same answer, whose decoding takes a moment."""
    page.evaluate("""() => {
      const decode = window.createImageBitmap;
      window.released = new Promise((resolve) => { window.release = resolve; });
      window.createImageBitmap = async (...all) => {
        await window.released;
        return decode(...all);
      };
    }""")
    draw(page, SEVEN)
    state(page, "normal")
    page.locator("#clear").click()
    state(page, "empty")
    page.evaluate("release()")
    page.wait_for_timeout(500)
    assert all(page.locator(f"#{name}").evaluate(IS_BLANK) for name in ("input", "reconstruction", "error_map"))


def test_a_file_that_is_read_late_does_not_replace_a_drawing(page, samples):
    """The reader draws while the browser still decodes an opened file."""
    page.evaluate("""() => {
      const decode = window.createImageBitmap;
      window.createImageBitmap = (source, ...others) => {
        if (!(source instanceof File)) return decode(source, ...others);
        return new Promise((resolve) => { window.release = async () => { resolve(await decode(source, ...others)); }; });
      };
    }""")
    page.set_input_files("#file", samples / "cat.png")
    page.wait_for_function("'release' in window")
    draw(page, SEVEN)
    page.evaluate("release().then(() => new Promise(requestAnimationFrame))")
    assert final_state(page) == "normal"
    page.locator("#undo").click()
    assert not strokes_on(page)


def test_strokes_are_undone_and_redone(page):
    """By buttons and by Control+Z and Control+Shift+Z, clearing too, and the verdict follows."""
    draw(page, SEVEN)
    final_state(page)
    page.locator("#undo").click()
    state(page, "empty")
    page.locator("#redo").click()
    state(page, "normal")
    page.locator("#clear").click()
    state(page, "empty")
    page.keyboard.press("Control+z")
    state(page, "normal")
    page.keyboard.press("Control+z")
    state(page, "empty")
    page.keyboard.press("Control+Shift+z")
    state(page, "normal")


def test_a_digit_is_drawn_by_keyboard(page):
    """Arrow keys move the pen, space puts it down: a one, announced."""
    page.locator("#paper").focus()
    for _ in range(8):
        page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    for _ in range(17):
        page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert final_state(page) == "normal"
    page.locator("#announce").get_by_text("A digit.").wait_for()


def test_the_keyboard_leaves_an_example_that_draws_itself_alone(browser, server):
    """Without a pen that is down, arrow keys, Escape and leaving the paper change nothing; the pen takes over."""
    with opened(browser, server.url) as page:
        page.emulate_media(reduced_motion="no-preference")
        page.get_by_label("Example: a house").click()
        page.locator("#ghost").wait_for(state="hidden")
        page.locator("#paper").focus()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Escape")
        page.locator("#clear").focus()
        expected = page.evaluate("""async () => {
          const { strokesOf } = await import("./page/examples.js"), { encodeStrokes } = await import("./page/strokes.js");
          return encodeStrokes(strokesOf("house"));
        }""")
        page.wait_for_function(
            "text => { document.getElementById('share').click(); return location.hash.endsWith(text); }", arg=expected
        )
        page.get_by_label("Example: a house").click()
        page.locator("#ghost").wait_for(state="hidden")
        page.evaluate("""() => {
          const announced = document.getElementById("announce");
          window.announcements = [];
          new MutationObserver(() => window.announcements.push(announced.textContent)).observe(announced, { childList: true });
        }""")
        page.locator("#paper").focus()
        for key in (" ", "ArrowUp", " "):
            page.keyboard.press(key)
        # A verdict can replace either sentence at once.
        for text in ("Pen down", "Pen up"):
            page.wait_for_function("text => window.announcements.some((one) => one.startsWith(text))", arg=text)


@pytest.mark.parametrize(
    "event",
    [
        {"pointerType": "mouse", "button": 2, "buttons": 2},
        {"pointerType": "touch", "width": 120, "height": 90},
    ],
    ids=["right-button", "palm"],
)
def test_only_the_pen_draws(page, event):
    """The right button and the palm of a hand leave no ink."""
    press(page, event)
    assert not strokes_on(page)
    press(page, {"pointerType": "touch", "width": 20, "height": 20})
    assert strokes_on(page)


def test_a_second_finger_does_not_draw(page):
    """The stroke stays that of the first finger."""
    page.evaluate(
        """() => {
            const paper = document.getElementById("paper"), box = paper.getBoundingClientRect();
            paper.setPointerCapture = () => {};
            const send = (type, pointerId, x, y) => paper.dispatchEvent(new PointerEvent(type, {
                pointerId, pointerType: "touch", isPrimary: pointerId === 5, bubbles: true,
                clientX: box.left + x, clientY: box.top + y, buttons: 1, width: 20, height: 20 }));
            send("pointerdown", 5, 60, 60); send("pointerdown", 6, 250, 250); send("pointermove", 6, 200, 250);
            send("pointermove", 5, 60, 200); send("pointerup", 6, 200, 250); send("pointerup", 5, 60, 200);
        }"""
    )
    page.locator("#share").click()
    assert page.locator("#link").input_value().count("=") == 1
    page.locator("#undo").click()
    assert not strokes_on(page)


def press(page, event):
    """A pointer that touches the middle of the paper and leaves it."""
    page.evaluate(
        """event => {
            const paper = document.getElementById("paper"), box = paper.getBoundingClientRect();
            paper.setPointerCapture = () => {};
            const all = { pointerId: 7, isPrimary: true, button: 0, buttons: 1, bubbles: true, ...event,
                clientX: box.left + 100, clientY: box.top + 100 };
            for (const type of ["pointerdown", "pointermove", "pointerup"]) paper.dispatchEvent(new PointerEvent(type, all));
        }""",
        event,
    )


def test_the_page_opens_with_an_example_until_it_is_touched(browser, server):
    """A seven draws itself and is a digit; the reader's first stroke replaces it."""
    with opened(browser, server.url, reduced_motion="no-preference", script=RECORD_STATES) as page:
        page.wait_for_function("() => window.states?.includes('normal')")  # the next example may have replaced it
        draw(page, [[(0.5, 0.2), (0.5, 0.8)]])
        page.locator("#share").click()
        drawn = page.locator("#link").input_value().partition("#draw=")[2]
        assert 5 < len(drawn) < 50
        page.locator("#undo").click()
        page.wait_for_timeout(600)
        state(page, "empty")


def test_an_example_is_drawn_on_request(page):
    """Each example gets the verdict that its group promises, the blank page the word blank."""
    for group, expected in (("Digits", "normal"), ("Something else", "anomaly"), ("What slips through", "normal")):
        for example in page.locator("#examples div", has_text=group).get_by_role("button").all():
            example.click()
            state(page, expected)
            assert final_state(page) == expected, example.get_attribute("title")
    page.get_by_label("Example: a blank page").click()
    page.locator("#warnings").get_by_text("Blank").wait_for()
    page.get_by_label("Example: a 42").click()
    page.locator("#warnings").get_by_text("Give it one digit at a time").wait_for()


def test_a_link_holds_the_drawing(page, browser):
    """Opened elsewhere, the link shows the same strokes and gets the same verdict."""
    draw(page, SEVEN)
    final_state(page)
    page.locator("#share").click()
    link = page.locator("#link").input_value()
    with opened(browser, link) as other:
        assert final_state(other) == "normal"
        other.locator("#share").click()
        assert other.locator("#link").input_value() == link
        other.locator("#clear").click()
        other.evaluate("location.hash = '#draw'")
        state(other, "empty")
        other.evaluate("hash => { location.hash = hash; }", link.partition("#")[2])
        state(other, "normal")


@pytest.mark.parametrize("hash", ["draw=%%%", "draw=" + "A" * 5000])
def test_a_broken_link_opens_an_empty_paper(browser, server, hash):
    """Whatever stands in the address, the page opens."""
    with opened(browser, f"{server.url}/#{hash}") as page:
        page.locator("#paper").wait_for()
        draw(page, SEVEN)
        assert final_state(page) in ("normal", "anomaly")


def test_opened_files_are_shown_and_judged(page, samples):
    """A TIFF, a digit and a cat, one after the other, the same file twice, and a photograph."""
    with Image.open(samples / "three.png") as image:
        page.set_input_files("#file", {"name": "three.tiff", "mimeType": "image/tiff", "buffer": encoded(image, "TIFF")})
    state(page, "normal")  # the browser cannot show it: the server's picture of it is on the paper
    page.wait_for_function("""() => {
      const paper = document.getElementById("paper");
      return paper.getContext("2d").getImageData(0, 0, paper.width, paper.height).data[0] === 0;
    }""")
    for name, expected in (("cat.png", "anomaly"), ("seven.png", "normal"), ("cat.png", "anomaly"), ("two.jpg", "normal")):
        page.set_input_files("#file", samples / name)
        state(page, expected)
