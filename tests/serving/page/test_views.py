"""The views for many files, for operators, and of the model."""

import csv
import io
import json
import shutil
from pathlib import Path

import httpx
import pytest
from browsing import opened, state
from strokes import png, stroke_images

STROKES = stroke_images(40, seed=5)
JUDGED = """parseInt((document.getElementById("flagged-now").textContent.split(" of ")[1] ?? "0").replaceAll(",", ""))"""


def images(count):
    """`count` files that are images of their own."""
    return [{"name": f"{index:04}.png", "mimeType": "image/png", "buffer": png(STROKES[index % 40])} for index in range(count)]


def downloaded(page, button):
    """The text of the file that a button downloads."""
    with page.expect_download() as download:
        page.locator(button).click()
    return download.value.path().read_text()


def test_many_files_are_scored_sorted_filtered_and_downloaded(browser, server, samples, tmp_path):
    """Good and broken files: each has a row; the downloads say what the server says."""
    broken = {"name": "-2+3.png", "mimeType": "image/png", "buffer": b"no image"}
    files = [
        *images(120),
        *[{"name": file.name, "mimeType": "", "buffer": file.read_bytes()} for file in samples.glob("*.*g")],
        broken,
    ]
    with opened(browser, f"{server.url}/#files", expected=["400"]) as page:
        page.locator("#many").set_input_files(files)
        page.locator("#files-summary").get_by_text(f"{len(files)} of {len(files)} done").wait_for()
        assert "1 not readable" in page.locator("#files-summary").inner_text()
        assert page.locator("#files-rows tr").count() == 100
        page.locator("#files-more").click()
        assert page.locator("#files-rows tr").count() == len(files)
        page.get_by_role("button", name="Score").click()
        page.get_by_role("button", name="Score").click()
        scores = [float(text) for text in page.locator("#files-rows td:nth-child(3)").all_inner_texts() if text]
        assert scores == sorted(scores, reverse=True)
        records = json.loads(downloaded(page, "#files-json"))
        rows = list(csv.DictReader(io.StringIO(downloaded(page, "#files-csv"))))
        names = [record["name"] for record in records]
        assert [name.replace("-2", "'-2") for name in names] == [row["name"] for row in rows]  # text that looks like a formula
        cat = next(record for record in records if record["name"] == "cat.png")
        sent = httpx.post(f"{server.url}/score?watch=0", files={"file": (samples / "cat.png").read_bytes()}).json()["results"][
            0
        ]
        assert cat["score"] == pytest.approx(sent["score"], rel=1e-6)  # sums differ in the last bit between batches
        assert (cat["p_value"], cat["is_anomaly"]) == (pytest.approx(sent["p_value"]), sent["is_anomaly"])
        page.locator("#files-search").fill("-2")
        assert page.locator("#files-rows tr").count() == 1
        assert page.locator("#files-rows").get_by_text("not readable").count() == 1
        page.locator("#files-search").fill("seven")
        page.locator("#files-rows .thumbnail").click()
        state(page, "normal")


def test_files_that_fail_together_are_sent_again(browser, server, samples, tmp_path):
    """After an answer that was cut off, the form is sent again; after the limit on decoding, each file alone. Files that a
    proxy refuses, or that cannot be read any more, get a sentence."""
    copies = [shutil.copy(samples / name, tmp_path) for name in ("seven.png", "three.png", "cat.png")]
    limited = {"error": {"type": "/problems/decoding-limit", "detail": "send fewer at once"}}
    answers = iter([{"body": '{"results": ['}, {"json": {"results": 3 * [limited]}}, None, {"status": 413, "body": "<h1>"}])

    def answer(route):
        """The next of the answers; None and after them: the server's."""
        made = next(answers, None)
        route.fulfill(**made) if made else route.continue_()

    with opened(browser, f"{server.url}/#files", expected=["Failed to load resource"]) as page:
        page.route("**/inspect*", answer)
        page.locator("#many").set_input_files(copies)
        page.locator("#files-summary").get_by_text("3 of 3 done").wait_for()
        assert page.locator("#files-rows .word").all_inner_texts() == ["digit", "not readable", "not a digit"]
        page.locator("#files-rows").get_by_text("(status 413)").wait_for()
        page.unroute("**/inspect*")
        Path(copies[0]).unlink()
        page.select_option("#models", "mnist-vae")
        page.locator("#files-rows").get_by_text("seven.png cannot be read on this computer.").wait_for()
        page.locator("#files-summary").get_by_text("3 of 3 done, 1 flagged at p ≤ 0.01, 1 not readable").wait_for()


def test_a_view_that_does_not_load_leaves_the_others(browser, server):
    """The reader is told, and the other views open."""
    with opened(browser, f"{server.url}/", expected=["Failed to load resource"]) as page:
        page.route("**/page/monitor.js", lambda route: route.abort())
        page.get_by_role("link", name="Monitor", exact=True).click()
        page.get_by_text("This view could not be loaded").wait_for()
        page.get_by_role("link", name="Files", exact=True).click()
        page.locator("#files-summary").wait_for()


def test_false_discoveries_over_all_files_are_those_of_the_server(browser, server):
    """Judged together, the page flags the images that ?fdr= flags in one request."""
    files = images(40)
    with opened(browser, f"{server.url}/#files") as page:
        page.locator("#many").set_input_files(files)
        page.locator("#files-summary").get_by_text("40 of 40 done").wait_for()
        page.locator("#files-fdr").check()
        page.select_option("#files-rate", "0.2")
        flagged = [record["is_anomaly"] for record in json.loads(downloaded(page, "#files-json"))]
    sent = [("file", (file["name"], file["buffer"], "image/png")) for file in files]
    results = httpx.post(f"{server.url}/score?watch=0&fdr=0.2", files=sent).json()["results"]
    assert flagged == [result["is_anomaly"] for result in results]


def test_two_thousand_files_are_taken_and_no_more(browser, server):
    """All are scored while the page stays usable; those over the limit are told; removing them frees their rows."""
    with opened(browser, f"{server.url}/#files") as page:
        page.locator("#files-summary").wait_for(state="attached")
        page.evaluate(
            """async bytes => {
                const file = index => new File([Uint8Array.from(bytes)], `${index}.png`, { type: "image/png" });
                const files = Array.from({ length: 2010 }, (_, index) => file(index));
                (await import("./page/files.js")).add(files);
            }""",
            list(png(STROKES[0])),
        )
        page.locator("#files-summary").get_by_text("10 files over 2,000 were left out. 2,000 of 2,000 done").wait_for(
            timeout=60_000
        )
        assert page.locator("#files-rows tr").count() == 100
        page.locator("#files-clear").click()
        assert page.locator("#files-rows tr").count() == 0


def test_the_monitor_follows_the_traffic(browser, server, samples):
    """Requests of other clients appear, with their share flagged, and drift with its alarm line."""
    with opened(browser, f"{server.url}/#monitor") as page:
        page.locator("#served").get_by_text("mnist-vae").wait_for()
        page.locator("#drift .limit").wait_for(state="attached")
        page.locator("#requests-now").get_by_text("–").wait_for(state="detached")
        images = page.evaluate(JUDGED)
        for _ in range(5):
            httpx.post(f"{server.url}/score", files={"file": (samples / "cat.png").read_bytes()})
        page.wait_for_function(f"least => ({JUDGED}) >= least", arg=images + 5)
        page.locator("#flagged-now").get_by_text("%").wait_for()
        page.get_by_role("link", name="Draw", exact=True).click()
        page.wait_for_timeout(500)
        sent = len(page.sent)
        page.wait_for_timeout(2500)
        assert not any("metrics" in url for url in page.sent[sent:])


def test_the_model_is_shown_with_its_report(browser, server, client):
    """The card in words, the report without a picture that is refused, and epochs behind a slider where there are several."""
    card = client.get("/model").json()
    with opened(browser, server.url, expected=["404"]) as page:
        page.route("**/p_values.png", lambda route: route.fulfill(status=404, content_type="application/json", body="{}"))
        page.get_by_role("link", name="Model", exact=True).click()
        page.locator(".report img").first.wait_for()
        assert page.get_by_alt_text("p-values of test images").count() == 0
        facts = page.locator(".facts").inner_text()
        assert f"{card['name']}/{card['version']}, published" in facts
        assert f"{card['name']}/{card['version']} (in service)" in facts
        page.wait_for_function(
            "() => [...document.querySelectorAll('.report img')].every((one) => one.complete && one.naturalWidth > 28)"
        )
        for name in ("errors.png", "latent.png", "loss.png"):
            assert any(url.endswith(name) for url in page.sent)


def test_late_pictures_do_not_bring_another_model_back(browser, server):
    """The report of a detector that arrives after another one was chosen is not shown."""
    with opened(browser, server.url) as page:
        held = []
        page.route("**/errors.png", lambda route: held.append(route))
        with page.expect_request("**/errors.png"):
            page.get_by_role("link", name="Model", exact=True).click()
        page.select_option("#models", "mnist-vae")
        page.locator(".facts").get_by_text("mnist-vae/").first.wait_for()
        with page.expect_response("**/errors.png"):
            held[0].continue_()
        page.evaluate("fetch('model')")
        assert "mnist-vae/" in page.locator(".facts").inner_text()
