"""Wrong requests as people make them: the message alone says what is wrong and what to do."""

import base64
import io

import numpy as np
import pytest
from hostile import FORM, NPY, PNG, animation, file_part, form
from PIL import Image
from strokes import encoded, npy, png, stroke_images

from app.detection.imaging.upload_warnings import UNCALIBRATED

IMAGES = stroke_images(3, seed=0)
GOOD = png(IMAGES[0])
JSON = "application/json"
ONE_FIELD = form((b'Content-Disposition: form-data; name="image"; filename="a.png"', GOOD))
NAMED = form((b'Content-Disposition: form-data; name="file"', b"seven.png"))

WRONG = {  # label: (method and path, content type, body, status, problem type, words of the message)
    "a photograph of an iPhone": ("POST /score", "image/heic", b"x", 415, "unsupported-type", ["heic is", "an image (PNG"]),
    "HEIC declared as JPEG": ("POST /score", "image/jpeg", b"\0\0\0\x18ftypheic", 415, "unsupported-type", ["HEIC", "PNG"]),
    "a drawing in SVG": ("POST /score", "image/svg+xml", b"<svg/>", 415, "unsupported-type", ["image/svg+xml is not accepted"]),
    "SVG declared as PNG": ("POST /score", PNG, b"<svg/>", 415, "unsupported-type", ["SVG is not accepted; send PNG"]),
    "a PDF": ("POST /score", "application/pdf", b"%PDF-1.7", 415, "unsupported-type", ["/pdf is not", "an image (PNG"]),
    "JSON to /score": ("POST /score", JSON, b"[[0]]", 415, "unsupported-type", [JSON, "/v2/models/NAME/infer"]),
    "no type": ("POST /score", "", GOOD, 415, "unsupported-type", ["no Content-Type", "curl -F file=@seven.png"]),
    "curl -d": ("POST /score", "application/x-www-form-urlencoded", GOOD, 415, "unsupported-type", ["curl", "-H 'Content"]),
    "a compressed body": ("POST /score", "gzip", GOOD, 415, "unsupported-type", ["Content-Encoding is not supported"]),
    "-F file=seven.png": ("POST /score", FORM, NAMED, 400, "not-an-image", ["name of a file", "put an @ before it"]),
    "--data seven.png": ("POST /score", PNG, b"dir/seven.png", 400, "not-an-image", ["name of a file", "put an @ before it"]),
    "an array's name": ("POST /score", NPY, b"images.npy", 400, "undecodable-image", ["name of a file", "put an @ before it"]),
    "a field named image": ("POST /score", FORM, ONE_FIELD, 400, "missing-file", ["'image'", "no part named 'file'"]),
    "a form that is none": ("POST /score", FORM, b"nothing", 400, "invalid-form", ["boundary"]),
    "text": ("POST /score", PNG, b"hello, world", 400, "not-an-image", ["no known signature", "send PNG, JPEG"]),
    "a web page": ("POST /score", PNG, b"\n<!DOCTYPE html><p>", 400, "not-an-image", ["HTML page"]),
    "base64": ("POST /score", PNG, base64.b64encode(GOOD), 400, "not-an-image", ["base64", "send the bytes"]),
    "nothing": ("POST /score", PNG, b"", 400, "not-an-image", ["The body is empty"]),
    "half a file": ("POST /score", PNG, GOOD[:90], 400, "undecodable-image", ["truncated PNG; save the image again"]),
    "floats": ("POST /score", NPY, npy(IMAGES / 255), 400, "undecodable-image", ["float64 [3, 28, 28]", "np.rint(array *"]),
    "larger images": ("POST /embed", NPY, npy(np.pad(IMAGES, 2)), 400, "undecodable-image", ["[7, 32, 32]", "[N, 28, 28]"]),
    "a typing error": ("POST /score?alhpa=0.1", PNG, GOOD, 422, "unknown-parameter", ["'alhpa'", "did you mean alpha?"]),
    "per cent": ("POST /score?alpha=5", PNG, GOOD, 422, "parameter-out-of-range", ["alpha must be a number between 0 and 1"]),
    "two rates": ("POST /score?alpha=0.1&fdr=0.1", PNG, GOOD, 422, "parameter-out-of-range", ["alpha or for fdr"]),
    "a rate too small": ("POST /score?alpha=1e-7", PNG, GOOD, 422, "parameter-out-of-range", ["9,999,999", "larger alpha"]),
    "a long query": (f"POST /score?model={'x' * 2100}", PNG, GOOD, 422, "parameter-out-of-range", ["2,106 bytes", "2,048"]),
    "another model": ("POST /score?model=cats", PNG, GOOD, 404, "not-found", ["no such model", "in service: mnist"]),
    "a path that is not there": ("POST /scores", PNG, GOOD, 404, "not-found", ["did you mean /score?", "/docs"]),
    "a path of the model's that is not there": ("GET /modle", "", b"", 404, "not-found", ["did you mean /model?"]),
    "a path of the monitor that is not there": ("GET /drft", "", b"", 404, "not-found", ["did you mean /drift?"]),
    "no path like it": ("GET /xyzzyplugh", "", b"", 404, "not-found", ["no such path", "/docs"]),
    "GET for POST": ("GET /score", "", b"", 405, "method-not-allowed", ["/score takes POST, not GET"]),
    "a parameter of /model": ("GET /model?modle=mnist", "", b"", 422, "unknown-parameter", ["did you mean model?"]),
    "a parameter of /drift": ("GET /drift?modle=mnist", "", b"", 422, "unknown-parameter", ["did you mean model?"]),
    "a picture that is not there": ("GET /model/report/x.png", "", b"", 404, "not-found", ["it has: epoch_images.png"]),
    "a problem that is not there": ("GET /problems/x", "", b"", 404, "not-found", ["there are: bad-request"]),
    "broken JSON": ("POST /decode", JSON, b"{embedding: [[0, 0]]}", 400, "invalid-json", ["key must be a string at line 1"]),
    "one coordinate": ("POST /decode", JSON, b'{"embedding": [[0]]}', 422, "parameter-out-of-range", ["2 coordinates"]),
}  # fmt: skip


@pytest.mark.parametrize("label", WRONG)
def test_the_message_alone_says_what_to_do(client, label):
    """Status, type and the words that help."""
    (method, path), kind, body, status, problem_type, words = WRONG[label][0].split(), *WRONG[label][1:]
    headers = {"content-type": kind} if kind and kind != "gzip" else {"content-encoding": "gzip"} if kind else {}
    answer = client.request(method, path, content=body, headers=headers)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"/problems/{problem_type}"), problem
    assert [word for word in words if word not in problem["detail"]] == [], problem["detail"]
    assert client.get(problem["type"]).status_code == 200
    assert status in {int(code) for code in described(client, method, path)}


def described(client, method, path):
    """The statuses that the OpenAPI document gives for an operation; any for paths that are not in it."""
    paths = client.get("/openapi.json").json()["paths"]
    path = path.partition("?")[0].replace("/x.png", "/{picture}").replace("/problems/x", "/problems/{type}")
    return paths.get(path, {}).get(method.lower(), {"responses": {code: {} for code in (404, 405)}})["responses"]


@pytest.mark.parametrize("kind", ["image/jpg", "image/pjpeg", "image/x-png", "image/tif", "application/octet-stream"])
def test_images_are_taken_by_their_content(client, kind):
    """Other names of image types, and no type at all, as a body and as a part of a form."""
    assert client.post("/score", content=GOOD, headers={"content-type": kind}).status_code == 200
    assert "error" not in client.post("/score", files={"file": ("a", GOOD, kind)}).json()["results"][0]


def test_arrays_are_taken_by_their_content(client):
    """An .npy that is declared as bytes, in each of the accepted shapes."""
    for shape in ((3, 28, 28), (3, 784), (3, 1, 28, 28)):
        body = npy(IMAGES.reshape(shape))
        answer = client.post("/score", content=body, headers={"content-type": "application/octet-stream"})
        assert len(answer.json()["results"]) == 3


def warnings(client, body, kind=PNG):
    """The warnings about the first image."""
    return client.post("/score", content=body, headers={"content-type": kind}).json()["results"][0]["warnings"]


def test_several_pictures_in_a_file_are_said(client):
    """An animation and a document of several pages: which one is used."""
    pages = io.BytesIO()
    first, *others = map(Image.fromarray, IMAGES)
    first.save(pages, "TIFF", save_all=True, append_images=others)
    for body in (animation(IMAGES), pages.getvalue()):
        assert warnings(client, body) == ["several_frames: the first of 3 pictures is used"]
    body = form(file_part("a.tif", pages.getvalue()), file_part("b.png", GOOD))
    assert [len(each["warnings"]) for each in client.post("/embed", content=body, headers={"content-type": FORM}).json()[
        "results"]] == [1, 0]  # fmt: skip


def test_what_was_not_calibrated_is_said_in_words(client):
    """Tiny digits, and 28x28 images with dark ink on white, as files and in arrays."""
    page = np.full((12, 12), 255, np.uint8)
    page[2:10, 5:7] = 0
    assert "upscaled: the digit measures less than 12 pixels, for which no false-alarm rate is promised" in warnings(
        client, png(page)
    )
    (file,) = warnings(client, png(255 - IMAGES[0]))
    assert file.startswith("looks_inverted: ") and "255 = ink" in file
    body = npy(np.stack([IMAGES[0], 255 - IMAGES[0]]))
    for query, expected in (("", [file]), ("?preprocess=none", [])):  # none says that the image is as it should be
        answer = client.post(f"/score{query}", content=body, headers={"content-type": NPY}).json()["results"]
        assert [each["warnings"] for each in answer] == [[], expected]
    assert warnings(client, encoded(Image.fromarray(IMAGES[0]), "GIF")) == []
    large = png(np.kron(IMAGES[0], np.ones((4, 4), np.uint8)))  # resized to a prepared detector's size, and no more
    (found,) = client.post("/score?preprocess=none", files={"file": large}).json()["results"]
    assert found["preprocess"] == ["resized"] and found["warnings"] == [UNCALIBRATED]
