"""The page for everybody: axe-core's rules in every view, the keyboard alone, narrow windows, large text, forced colours."""

import pytest
from browsing import draw, final_state, opened
from drawings import DIGITS, STRANGE

VIEWS = {"": "#paper", "#files": "#many", "#monitor": "#served td", "#model": ".report img"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_view_violates_axe(browser, server, scheme):
    """Every view, empty and with results, has no violation."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed").Axe()
    with opened(browser, server.url, color_scheme=scheme) as page:
        for view, mark in VIEWS.items():
            page.goto(f"{server.url}/{view}")
            page.locator(mark).first.wait_for(state="attached")
            results = axe.run(page)
            assert results.violations_count == 0, f"{view}: {results.generate_report()}"
        page.goto(server.url)
        draw(page, STRANGE["grid"])
        final_state(page)
        results = axe.run(page)
        assert results.violations_count == 0, results.generate_report()


def test_everything_is_reached_by_keyboard(page, samples):
    """Tab walks through all controls in the order of the page; each can be worked without a mouse."""
    page.on("filechooser", lambda chooser: None)  # has Chromium report them from now on: told just before a key, it may be late
    seen = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("document.activeElement.id || document.activeElement.textContent || document.activeElement.ariaLabel")
        )
        if seen[-1] == "map":
            break
    order = [
        name for name in seen if name in ("paper", "clear", "width", "file", "share", "overlay", "alpha", "zoom-in", "map")
    ]
    assert order == ["paper", "clear", "width", "file", "share", "overlay", "alpha", "zoom-in", "map"]
    assert {"Draw", "Files", "Monitor", "Model", "API"} <= set(seen)
    page.get_by_label("Example: a three").focus()
    page.keyboard.press("Enter")
    assert final_state(page) == "normal"
    page.locator("#alpha").focus()
    before = page.locator("#alpha-value").inner_text()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#alpha-value").inner_text() != before
    page.get_by_role("link", name="Files", exact=True).focus()
    page.keyboard.press("Enter")
    page.locator("#view-files").wait_for()  # what is hidden takes no focus
    page.locator("#many").focus()
    assert page.locator("label[for=many]").evaluate("label => getComputedStyle(label).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files([samples / "seven.png", samples / "cat.png"])
    page.locator("#files-summary").get_by_text("2 of 2 done").wait_for()
    page.get_by_role("button", name="Score").focus()
    page.keyboard.press("Enter")
    assert page.locator("th[aria-sort=ascending]").inner_text().startswith("Score")


@pytest.mark.parametrize(
    "options",
    [
        {"viewport": {"width": 320, "height": 640}},
        {"viewport": {"width": 640, "height": 900}, "device_scale_factor": 2},
        {"forced_colors": "active"},
    ],
    ids=["small-phone", "zoomed", "forced-colours"],
)
def test_the_page_fits(browser, server, options):
    """Nothing sticks out to the side in any view, also with text of twice the size, and a drawing is judged."""
    with opened(browser, server.url, **options) as page:
        draw(page, DIGITS[7])
        assert final_state(page) == "normal"
        for view, mark in VIEWS.items():
            page.goto(f"{server.url}/{view}")
            page.locator(mark).first.wait_for(state="attached")
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
            if "viewport" in options and options["viewport"]["width"] == 640:
                page.evaluate("document.documentElement.style.fontSize = '200%'")
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view
