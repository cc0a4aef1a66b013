"""The parts of the page that explain: threshold, error map, latent plane, the choice of a detector."""

import re
import shutil

import httpx
import numpy as np
import pytest
from browsing import draw, final_state, opened, state
from conftest import make_bundle
from drawings import DIGITS
from live import serving, wait_until
from strokes import png, stroke_images

from app.detection import store
from app.training.reporting.plots import sheet

PIXELS = "id => [...document.getElementById(id).getContext('2d').getImageData(0, 0, 28, 28).data]"


def set_alpha(page, value):
    """Move the slider of alpha to one of its steps."""
    page.locator("#alpha").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); }", value
    )


def test_alpha_moves_the_threshold_and_the_verdict(page, client):
    """Every rate of /model/calibration can be chosen; the sentence, the line and the verdict follow it at once."""
    rates = client.get("/model/calibration").json()["rates"]
    page.locator("#histogram .bar").first.wait_for()
    draw(page, DIGITS[2])
    final_state(page)
    score = float(re.search(r"Score ([\d.]+)", page.locator("#reason").inner_text())[1])
    for index, rate in enumerate(rates):
        set_alpha(page, index)
        assert f"threshold {rate['threshold']:.2f}" in page.locator("#histogram .limit-text").text_content()
        if abs(score - rate["threshold"]) > 0.02:
            state(page, "anomaly" if score > rate["threshold"] else "normal")
    set_alpha(page, [rate["alpha"] for rate in rates].index(0.01))
    assert page.locator("#alpha-text").inner_text() == "Of 1,000 normal digits about 10 would be flagged."


def test_a_rate_for_which_a_kind_has_too_few_images_gives_no_verdict(page, client, samples):
    """The score is above the threshold, but no p-value of this kind of upload is as small as the rate."""
    rates = [rate["alpha"] for rate in client.get("/model/calibration").json()["rates"]]
    answer = client.post("/inspect", files={"file": (samples / "seven.png").read_bytes()}).json()
    answer["results"][0] |= {"score": 30, "p_value": 1 / 579}
    page.route("**/inspect*", lambda route: route.fulfill(json=answer))
    page.locator("#histogram .bar").first.wait_for()
    draw(page, DIGITS[2])
    state(page, "anomaly")
    set_alpha(page, rates.index(0.001))
    state(page, "unknown")
    assert "Too few images of this kind" in page.locator("#reason").inner_text()


def test_the_error_map_is_read_by_pointing(page):
    """A pixel's value in times of the usual error, by arrow keys too; the overlay mixes the map with the drawing."""
    draw(page, DIGITS[5])
    final_state(page)
    page.locator("#error_map").hover()
    page.locator("#pixel").get_by_text(re.compile(r"Column \d+, row \d+: .* the usual error")).wait_for()
    pointed = page.locator("#pixel").inner_text()
    page.locator("#error_map").press("ArrowDown")
    assert page.locator("#pixel").inner_text().split(",")[0] == pointed.split(",")[0]  # the same column
    assert page.locator("#pixel").inner_text() != pointed
    before = page.evaluate(PIXELS, "error_map")
    page.locator("#overlay").check()
    assert page.evaluate(PIXELS, "error_map") != before
    page.locator("#overlay").uncheck()
    assert page.evaluate(PIXELS, "error_map") == before


def test_the_ring_is_dragged_over_the_plane(page):
    """Dragging and the arrow keys decode from the grid, without an answer of the server; the reconstruction follows."""
    draw(page, DIGITS[0])
    final_state(page)
    page.locator("#map").scroll_into_view_if_needed()
    page.locator("#map[data-state=ready]").wait_for()
    page.wait_for_timeout(500)
    assert sum(url.endswith("/decode") for url in page.sent) == 1  # for the whole grid
    held = []  # where the ring rests, the server is asked; here it does not answer
    page.route("**/decode", lambda route: held.append(route))
    decoded, drawn = page.evaluate(PIXELS, "decoded"), page.evaluate(PIXELS, "reconstruction")
    box = page.locator("#map").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(20):
        page.mouse.move(x + 5 * step, y - 4 * step)
    assert page.evaluate(PIXELS, "decoded") != decoded
    assert page.evaluate(PIXELS, "reconstruction") != drawn
    page.mouse.up()
    decoded = page.evaluate(PIXELS, "decoded")
    page.locator("#map").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(PIXELS, "decoded") != decoded
    for _ in range(200):
        if not held:
            page.wait_for_timeout(50)
    assert held
    for route in held:
        route.continue_()
    page.keyboard.press("+")
    page.locator("#zoom-reset").click()


def test_two_fingers_zoom_and_move_the_plane(browser, server):
    """What lies between the fingers stays between them; one finger alone does not zoom."""
    with opened(browser, server.url, has_touch=True, viewport={"width": 400, "height": 800}) as page:
        page.locator("#map").scroll_into_view_if_needed()
        page.locator("#map[data-state=ready]").wait_for()
        box = page.locator("#map").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        middle, beside = place_at(page, x, y), place_at(page, x + 80, y)
        pinch(page, [(x - 30, y), (x + 30, y)], [(x - 120, y), (x + 120, y)])
        assert place_at(page, x, y) == pytest.approx(middle, abs=0.02)
        zoomed = place_at(page, x + 80, y)
        assert abs(zoomed[0] - middle[0]) < abs(beside[0] - middle[0])
        pinch(page, [(x - 60, y), (x + 60, y)], [(x - 20, y - 70), (x + 100, y - 70)])
        assert place_at(page, x + 40, y - 70) == pytest.approx(middle, abs=0.02)
        pinch(page, [(x - 120, y), (x + 120, y)], [(x - 10, y), (x + 10, y)])
        assert page.locator("#zoom-out").is_disabled()
        assert place_at(page, x + 80, y) == pytest.approx(beside, abs=0.02)


def pinch(page, start, end, steps=8):
    """Two fingers, which the browser sees as touches, from two places to two others."""
    touch = page.context.new_cdp_session(page)

    def send(kind, places):
        points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(places)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    send("touchStart", start[:1])
    send("touchStart", start)
    for step in range(1, steps + 1):
        send("touchMove", (np.array(start) + (np.array(end) - np.array(start)) * step / steps).tolist())
    send("touchEnd", [])
    touch.detach()


def place_at(page, x, y):
    """The two numbers at a point of the map, which a tap moves the ring to."""
    page.touchscreen.tap(x, y)
    return [float(text.replace("−", "-")) for text in re.findall(r"[−\d.]+\d", page.locator("#place").inner_text())[:2]]


def test_a_test_image_is_named_under_the_pointer(page):
    """Pointing at a numeral of the map finds a test image nearby and says its class, also where the browser refuses storage."""
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused'); } })")
    page.reload()
    page.locator("#map").scroll_into_view_if_needed()
    find_test_image(page)


def find_test_image(page):
    """Move the pointer over the map until it meets a test image."""
    page.locator("#map[data-state=ready]").wait_for()
    box = page.locator("#map").bounding_box()
    for step in range(60):
        page.mouse.move(box["x"] + box["width"] * (0.1 + step / 75), box["y"] + box["height"] * 0.75)
        if "A test image of a" in page.locator("#place").inner_text():
            return
    raise AssertionError("no test image was found")


def test_the_page_asks_the_chosen_model_and_is_not_counted(browser, tmp_path, samples, shipped_store):
    """The list names every model; the chosen one answers, with its own map; no request of the page counts as traffic."""
    root = tmp_path / "store"
    shutil.copytree(shipped_store, root)
    publish_wide(root)
    with (
        serving(tmp_path / "log", "--store", str(root), ODDIGIT_DRAIN_S="0") as server,
        opened(browser, server.url) as page,
    ):
        page.set_input_files("#file", samples / "cat.png")
        final_state(page)
        page.select_option("#models", "wide")
        page.locator("#model").filter(has_text="wide/1").wait_for()
        page.locator("#numbers").get_by_text(re.compile(r"(\S+\s+){2}\S+")).wait_for()
        page.locator("#map").scroll_into_view_if_needed()
        page.locator("#place").get_by_text(re.compile(r"ring: \S+ \S+ \S+")).wait_for()
        assert any("inspect?watch=0&model=wide" in url for url in page.sent)
        for name in ("mnist", "wide"):
            assert httpx.get(f"{server.url}/drift", params={"model": name}).json()["images"] == 0
        find_test_image(page)
        page.locator("#sample").wait_for()
        publish_wide(root)  # the server takes the new version up, and the page follows
        wait_until(lambda: httpx.get(f"{server.url}/model", params={"model": "wide"}).json()["version"] == 2)
        draw(page, DIGITS[1])
        page.locator("#model").filter(has_text="wide/2").wait_for()
        page.get_by_role("link", name="Model", exact=True).click()
        page.locator(".facts").get_by_text("wide/2 (in service), wide/1").wait_for()
        page.get_by_label("Epoch", exact=True).press("ArrowLeft")
        page.locator(".epochs figcaption").get_by_text("after 1 epochs").wait_for()


def publish_wide(root):
    """Publish the detector `wide`, whose embeddings have three coordinates, with a map of them."""
    bundle = make_bundle(1, "wide", latent_dim=3)
    embeddings = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32) * [3, 2, 1]

    def write_report(folder):
        np.savez(folder / "latent.npz", embeddings=embeddings, labels=np.arange(60) % 10)
        (folder / "latent_images.png").write_bytes(png(sheet(stroke_images(60, seed=3), 50)))
        (folder / "epoch_images.png").write_bytes(png(sheet(stroke_images(64, seed=4), 16)))

    store.publish(bundle, root, write_report)


@pytest.mark.parametrize(
    ("p", "sentence"),
    [
        (0.8, "Most normal digits look more unusual than this."),
        (0.2, "One in five normal digits looks this unusual."),
        (0.0033, "About one in 300 normal digits looks this unusual."),
        (0.00005, "Of normal digits, fewer than one in 10,000 look this unusual."),
    ],
)
def test_p_values_are_said_without_false_precision(page, p, sentence):
    """As a person would say them."""
    assert page.evaluate("async p => (await import('./page/words.js')).raritySentence(p)", p) == sentence
