import asyncio
import base64
import io
import json
import math
import shutil
import threading
from pathlib import Path

import httpx
import numpy as np
import pytest
from live import serving
from PIL import Image
from strokes import npy, stroke_images

from app.detection import store
from app.detection.bundle import Card
from app.serving import schemas
from app.serving.api import model_info
from app.serving.api.calibration_summary import CalibrationSummary
from app.serving.errors import NotFound
from app.serving.settings import read_settings


def decode(client, body):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return client.post("/decode", content=content, headers={"content-type": "application/json"})


def test_the_model_is_described_by_its_card(client, shipped_store):
    """/model is the card of the version in service, and the device."""
    answer = client.get("/model").json()
    card = store.load_card(shipped_store / "mnist" / str(answer["version"]))
    assert answer.pop("device")
    assert Card.model_validate(answer) == card


def test_the_reports_pictures_are_served(client):
    """Every picture that the card lists is there, and is a picture."""
    pictures = [name.removeprefix("report/") for name in client.get("/model").json()["files"] if name.endswith(".png")]
    assert pictures
    for picture in pictures:
        response = client.get(f"/model/report/{picture}")
        assert response.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(response.content)).size[0] > 28


def test_a_picture_that_did_not_change_is_not_sent_again(client):
    """Clients keep pictures and ask with the ETag. A range is answered with the whole picture."""
    whole = client.get("/model/report/loss.png")
    assert client.get("/model/report/loss.png", headers={"if-none-match": whole.headers["etag"]}).status_code == 304
    for part in ("bytes=0-9", "bytes=abc", "bytes=99999999-"):
        assert client.get("/model/report/loss.png", headers={"range": part}).content == whole.content


@pytest.mark.parametrize(
    "picture",
    [
        "no.png",
        "..%2fcard.json",
        "%2e%2e%2fautoencoder.pth",
        "../card.json",
        "latent.npz",
        ".png",
        "a%00.png",
        "%ff.png",
        "x" * 3000,
    ],
)
def test_nothing_but_the_reports_pictures_is_served(client, picture):
    """Other files of the version and other folders cannot be reached."""
    assert client.get(f"/model/report/{picture}").status_code == 404


def test_a_version_without_a_report_says_so(strict_client):
    """Where no picture and no map was published, both are not found."""
    for path in ("/model/report/loss.png", "/latent"):
        response = strict_client.get(path)
        assert response.status_code == 404
        schemas.Problem.model_validate(response.json())


def test_the_latent_map_has_a_label_a_point(client):
    """The test images in the plane, where the version has them."""
    latent = schemas.Latent.model_validate(client.get("/latent").json())
    assert 2000 >= len(latent.embedding) == len(latent.labels) > 0


def test_the_latent_map_is_sent_once_and_compressed(client):
    """It has an ETag, with which a second request gets 304; clients that take no gzip get the same content."""
    first = client.get("/latent")
    assert first.headers["content-encoding"] == "gzip"
    assert int(first.headers["content-length"]) < 30_000
    again = client.get("/latent", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    plain = client.get("/latent", headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.json() == first.json()


def test_the_calibration_is_summarised(client):
    """Every calibration image is in one bin; the threshold of the card's alpha is the card's; they fall with alpha."""
    card = client.get("/model").json()
    summary = CalibrationSummary.model_validate(client.get("/model/calibration").json())
    assert sum(summary.counts) == summary.images == card["calibration_images"]
    assert len(summary.edges) == len(summary.counts)
    thresholds = {rate.alpha: rate.threshold for rate in summary.rates}
    assert thresholds[card["alpha"]] == card["threshold"]
    assert list(thresholds.values()) == sorted(thresholds.values(), reverse=True)


def test_a_calibration_of_few_images_has_only_the_rates_that_it_can_promise(strict_client):
    """199 images have no threshold for rates below 0.005."""
    rates = strict_client.get("/model/calibration").json()["rates"]
    assert min(rate["alpha"] for rate in rates) == 0.005


def test_a_version_removed_from_under_the_server_serves_on_without_its_report(tmp_path, shipped_store):
    """What is in memory answers; what was on the disk is not found, and is no error of the server."""
    root = tmp_path / "store"
    shutil.copytree(shipped_store, root)
    with serving(tmp_path / "log", "--store", str(root), ODDIGIT_DRAIN_S="0") as server:
        assert httpx.get(f"{server.url}/latent").status_code == 200
        shutil.rmtree(root)
        for path in ("/latent", "/model/report/loss.png"):
            assert httpx.get(f"{server.url}{path}").status_code == 404
        sent = {"content": npy(stroke_images(2, seed=1)), "headers": {"content-type": "application/x-npy"}}
        assert httpx.post(f"{server.url}/score", **sent).status_code == 200


def test_a_decoded_embedding_is_the_reconstruction(client):
    """/decode of what /embed says is what /reconstruct draws."""
    body, headers = npy(stroke_images(3, seed=12)), {"content-type": "application/x-npy"}
    embeddings = [r["embedding"] for r in client.post("/embed", content=body, headers=headers).json()["results"]]
    drawn = [r["reconstruction"] for r in client.post("/reconstruct", content=body, headers=headers).json()["results"]]
    answer = schemas.DecodeResponse.model_validate(decode(client, {"embedding": embeddings}).json())
    for one, other in zip(answer.images, drawn, strict=True):
        pixels = [np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))), int) for picture in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"embedding": ' + b"[" * 50_000, 400),
        (b'{"embedding": [[NaN, 0]]}', 422),
        (b'{"embedding": [[1e999, 0]]}', 422),
        (b'{"embedding": [[' + b"9" * 5000 + b", 0]]}", None),
        (b"null", 422),
        (b"3", 422),
        ({}, 422),
        ({"embedding": []}, 422),
        ({"embedding": [[]]}, 422),
        ({"embedding": [[1]]}, 422),
        ({"embedding": [[1, 2, 3]]}, 422),
        ({"embedding": [[1, 2], [1]]}, 422),
        ({"embedding": [["x", 2]]}, 422),
        ({"embedding": [[True, 2]]}, None),
        ({"embedding": [[None, 2]]}, 422),
        ({"embedding": [[1e7, 0]]}, 422),
        ({"embedding": [[0, 0]] * 1025}, 422),
        ({"embedding": [[0, 0]], "more": 1}, 422),
        ({"embedding": {"0": [0, 0]}}, 422),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, int) else None,
)
def test_points_that_are_none_are_refused(client, body, status):
    """Whatever is not one to 1,024 points of the plane: a problem that says where it is wrong."""
    response = decode(client, body)
    if status is None:
        assert response.status_code in (200, 400, 422)
    else:
        assert response.status_code == status, response.text
        schemas.Problem.model_validate(response.json())


@pytest.mark.parametrize("far", [1e6, -1e6, 1e-300, 0.0, -0.0])
def test_far_and_tiny_points_are_drawn(client, far):
    """Every point within the limits has a picture."""
    answer = decode(client, {"embedding": [[far, far]] * 1024}).json()
    assert len(answer["images"]) == 1024
    assert math.isfinite(np.asarray(Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))).mean())


def test_a_map_of_the_latent_space_that_cannot_be_read_is_not_shown():
    """No archive, or one without labels or points: 404."""
    points, labels = np.zeros((3, 2), np.float32), np.arange(3)
    archives = ({"embeddings": points}, {"embeddings": points, "labels": np.uint8(5)}, {"embeddings": labels, "labels": labels})
    for content in (*map(npz, archives), b"no archive"):
        with pytest.raises(NotFound):
            model_info._latent_response(None, content, None, "")


def npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def test_a_store_that_hangs_holds_up_one_thread_for_each_file(tiny_bundle, tmp_path, monkeypatch):
    """Requests for the file wait for the same thread until their deadline, and get the content if it comes in time."""
    folder = store.publish(tiny_bundle, tmp_path, lambda report: (report / "loss.png").write_bytes(b"picture"))
    bundle = store.load(folder)
    reads, may_read = [], threading.Event()

    def read(path):
        reads.append(path.name)
        assert may_read.wait(30)
        return b"picture"

    monkeypatch.setattr(Path, "read_bytes", read)
    endpoints = model_info.ModelInfoEndpoints([], None, read_settings({}))

    async def ask():
        now = asyncio.get_running_loop().time()
        late = await asyncio.gather(
            *(endpoints._read_report(bundle, "loss.png", now + 0.05) for _ in range(5)), return_exceptions=True
        )
        assert [type(error) for error in late] == [TimeoutError] * 5
        asking = asyncio.create_task(endpoints._read_report(bundle, "loss.png", now + 30))
        await asyncio.sleep(0)
        may_read.set()
        assert await asking == b"picture"
        assert reads == ["loss.png"] and not endpoints._reading

    asyncio.run(ask())
