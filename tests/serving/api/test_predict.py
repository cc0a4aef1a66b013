import base64
import io
import itertools
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from hostile import FORM, NPY, file_part, form
from PIL import Image
from scipy.stats import false_discovery_control
from strokes import npy, png, stroke_images

from app.detection import store
from app.detection.imaging.centring import centre_images
from app.detection.runtimes import load_network
from app.network.detector_network import normalise

IMAGES = stroke_images(40, seed=11)
BULK = npy(IMAGES)


def ask(client, path, body=BULK, kind=NPY, accept="application/json", query=""):
    response = client.post(path + query, content=body, headers={"content-type": kind, "accept": accept})
    assert response.status_code == 200, response.text
    return response


def array(response):
    assert response.headers["content-type"] == NPY
    return np.load(io.BytesIO(response.content), allow_pickle=False)


def opened(data):
    return np.asarray(Image.open(io.BytesIO(data)))


# --------------------------------------------------------------------------------------------------------------- the laws


@pytest.mark.parametrize("alpha", [None, 0.001, 0.01, 0.05, 0.1, 0.2, 0.5, 0.9, 0.999])
def test_score_p_value_and_verdict_agree(client, alpha):
    """`score > threshold`, `p_value <= alpha` and `is_anomaly` say the same of every image, at every alpha."""
    answer = ask(client, "/score", query="" if alpha is None else f"?alpha={alpha}").json()
    assert alpha is None or answer["alpha"] == alpha
    for result in answer["results"]:
        assert result["is_anomaly"] == (result["score"] > answer["threshold"]) == (result["p_value"] <= answer["alpha"])


def test_alpha_moves_the_threshold_and_nothing_else(client):
    """Scores and p-values do not depend on the rate asked for; a smaller one never has a lower threshold."""
    answers = [ask(client, "/score", query=f"?alpha={alpha}").json() for alpha in (0.001, 0.01, 0.1, 0.5)]
    thresholds = [answer["threshold"] for answer in answers]
    assert thresholds == sorted(thresholds, reverse=True)
    for key in ("score", "p_value", "reconstruction_error"):
        columns = [[result[key] for result in answer["results"]] for answer in answers]
        assert all(column == columns[0] for column in columns)


@pytest.mark.parametrize("fdr", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("strangers", [0, 3, 30])
def test_false_discoveries_are_controlled_over_an_answer(client, fdr, strangers):
    """The verdicts are Benjamini and Hochberg's, as SciPy computes them, and agree with alpha and threshold as ever."""
    noise = np.random.default_rng(strangers).integers(0, 256, (strangers, 28, 28)).astype(np.uint8)
    answer = ask(client, "/score", npy(np.concatenate([IMAGES, noise])), query=f"?fdr={fdr}").json()
    p_values = np.array([result["p_value"] for result in answer["results"]])
    verdicts = [result["is_anomaly"] for result in answer["results"]]
    assert verdicts == (false_discovery_control(p_values) <= fdr).tolist()
    assert answer["fdr"] == fdr
    for result in answer["results"]:
        assert result["is_anomaly"] == (result["score"] > answer["threshold"]) == (result["p_value"] <= answer["alpha"])


def test_an_image_of_a_small_group_hides_no_other_discovery(client, samples):
    """A blank photograph has a high score but no small p-value, because few blank ones were calibrated."""
    letter = np.zeros((28, 28), np.uint8)  # an E with a bar in the middle
    letter[4:24, 13:15] = letter[4:6, 5:23] = letter[13:15, 5:23] = letter[22:24, 5:23] = 255
    files = [("file", ("letter.png", png(letter))), ("file", ("blank.png", (samples / "blank.png").read_bytes()))]
    letter, blank = client.post("/score?fdr=0.001", files=files).json()["results"]
    assert letter["score"] < blank["score"] and letter["p_value"] < blank["p_value"]
    assert letter["is_anomaly"] and not blank["is_anomaly"]


@pytest.mark.parametrize("query", ["", "?alpha=0.2", "?fdr=0.3"])
def test_an_answer_as_an_array_counts_its_anomalies(client, query):
    """In the header, as JSON does; a rate that cannot be had is refused in both forms."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 28, 28)).astype(np.uint8)
    mixed = npy(np.concatenate([IMAGES, noise]))
    results = [ask(client, "/score", mixed, query=query, accept=accept) for accept in ("application/json", NPY)]
    assert results[0].headers["oddigit-result"] == results[1].headers["oddigit-result"]
    assert (
        f"anomalies={sum(each['is_anomaly'] for each in results[0].json()['results'])}" in results[1].headers["oddigit-result"]
    )
    refused = client.post("/score?alpha=1e-9", content=mixed, headers={"content-type": NPY, "accept": NPY})
    assert refused.status_code == 422


def test_without_discoveries_the_threshold_is_still_that_of_alpha(client):
    """One image of which there is nothing to say: alpha is fdr itself, and the threshold the one that ?alpha= has."""
    p_values = [result["p_value"] for result in ask(client, "/score").json()["results"]]
    body = npy(IMAGES[np.argmax(p_values)][None])
    asked = [ask(client, "/score", body, query=query).json() for query in ("?fdr=0.05", "?alpha=0.05")]
    assert not asked[0]["results"][0]["is_anomaly"]
    assert (asked[0]["alpha"], asked[0]["threshold"]) == (asked[1]["alpha"], asked[1]["threshold"])


def test_an_alpha_that_the_calibration_cannot_give_is_refused(client, strict_client):
    """A rate below 1 / (n + 1) has no threshold; the answer says how many images it would take."""
    for asked, alpha in ((client, 1e-9), (strict_client, 0.004)):
        response = asked.post(f"/score?alpha={alpha}", content=png(IMAGES[0]), headers={"content-type": "image/png"})
        assert response.status_code == 422
        assert "calibration images" in response.json()["detail"]


@pytest.mark.parametrize("path", ["/score", "/embed"])
def test_arrays_hold_what_the_json_says(client, path):
    """Asked for as an array, the answer has the same numbers in the same order."""
    key = {"/score": "score", "/embed": "embedding"}[path]
    found = array(ask(client, path, accept=NPY))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [result[key] for result in ask(client, path).json()["results"]], rtol=1e-5)


def test_order_is_kept_whatever_the_order(client):
    """The results of a permuted upload are the permuted results."""
    rows = np.random.RandomState(0).permutation(len(IMAGES))
    straight, permuted = (array(ask(client, "/score", npy(images), accept=NPY)) for images in (IMAGES, IMAGES[rows]))
    np.testing.assert_allclose(permuted, straight[rows], rtol=1e-5)


def test_an_image_scores_the_same_in_any_batch(client):
    """Alone, in batches of any size, and at the side of other clients' images."""
    whole = array(ask(client, "/score", accept=NPY))
    for size in (1, 7, 39):
        parts = [array(ask(client, "/score", npy(IMAGES[at : at + size]), accept=NPY)) for at in range(0, 40, size)]
        np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)
    with ThreadPoolExecutor(16) as pool:
        bodies = [png(image) for image in IMAGES] * 4
        answers = list(pool.map(lambda body: ask(client, "/score", body, "image/png").json()["results"][0]["score"], bodies))
    np.testing.assert_allclose(answers, np.tile(whole, 4), rtol=1e-5)


def test_questions_of_all_kinds_at_once_get_their_own_answers(client):
    """Under concurrency, /score, /embed and /reconstruct share batches and mix nothing up."""
    alone = {path: array(ask(client, path, accept=NPY)) for path in ("/score", "/embed", "/reconstruct")}
    work = [(path, index) for index in range(40) for path in alone]
    with ThreadPoolExecutor(12) as pool:
        found = pool.map(lambda job: array(ask(client, job[0], png(IMAGES[job[1]]), "image/png", NPY))[0], work)
        for (path, index), answer in zip(work, found, strict=True):
            np.testing.assert_allclose(answer, alone[path][index], rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- the pictures


def test_reconstructions_that_exceed_the_memory_of_responses_are_refused(client):
    """22,000 take 69 MB; the scores of as many images are answered."""
    body = npy(np.zeros((22_000, 28, 28), np.uint8))
    headers = {"content-type": NPY, "accept": NPY}
    refused = client.post("/reconstruct", content=body, headers=headers)
    assert refused.status_code == 413 and "Send fewer images" in refused.json()["detail"]
    assert client.post("/score?watch=0", content=body, headers=headers).status_code == 200


def test_a_reconstruction_comes_as_three_pictures_an_image(client):
    """Input, reconstruction and error map are 28x28 PNGs; the input is the image that was sent, centred."""
    results = ask(client, "/reconstruct").json()["results"]
    assert len(results) == len(IMAGES)
    for image, result in zip(IMAGES, results, strict=True):
        given, made, error = (opened(base64.b64decode(result[key])) for key in ("input", "reconstruction", "error_map"))
        assert np.array_equal(given, centre_images(image[None])[0][0])
        assert made.shape[:2] == error.shape[:2] == (28, 28)


def test_inspect_is_the_three_others_in_one_answer(client):
    """Verdict, embedding and pictures are those of /score, /embed and /reconstruct, at the rate that was asked for."""
    queries = {"/reconstruct": "", "/embed": "", "/score": "?alpha=0.05"}
    alone = [ask(client, path, query=query).json() for path, query in queries.items()]
    together = ask(client, "/inspect", query="?alpha=0.05").json()
    results = [reconstruct | embed | score for reconstruct, embed, score in zip(*(a["results"] for a in alone), strict=True)]
    assert together.pop("results") == results
    assert together == {key: value for key, value in alone[2].items() if key != "results"}


def test_inspect_without_watch_is_not_counted(client):
    """watch=0 leaves drift where it is; without it, the images count as traffic."""
    before = client.get("/drift").json()["images"]
    ask(client, "/inspect", query="?watch=0")
    assert client.get("/drift").json()["images"] == before
    ask(client, "/inspect")
    assert client.get("/drift").json()["images"] == before + len(IMAGES)


def test_reconstructions_as_an_array_are_the_pictures(client):
    """Floats from 0 to 1 that, as pixels, are the reconstructions of the JSON answer."""
    found = array(ask(client, "/reconstruct", accept=NPY))
    assert found.shape == (40, 28, 28)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1
    pictures = [opened(base64.b64decode(r["reconstruction"])) for r in ask(client, "/reconstruct").json()["results"]]
    np.testing.assert_allclose(found * 255, pictures, atol=0.51)


def test_a_picture_has_a_row_an_image(client):
    """Asked for as a picture, the answer is one PNG with the upload's images from top to bottom, enlarged."""
    sheets = [ask(client, "/reconstruct", npy(IMAGES[:count]), accept="image/png") for count in (1, 2, 3)]
    assert all(sheet.headers["content-type"] == "image/png" for sheet in sheets)
    heights = [opened(sheet.content).shape[0] for sheet in sheets]
    assert heights[2] - heights[1] == heights[1] - heights[0] >= 28
    picture = opened(sheets[0].content)
    assert picture.shape[1] > 2.5 * picture.shape[0]


def test_a_digit_is_recognisable_in_its_reconstruction(client, samples):
    """What the network draws of a digit is nearer to that digit than to any other of the samples."""
    names = ["seven.png", "three.png", "two.jpg", "four.jpg"]
    body = form(*[file_part(name, (samples / name).read_bytes()) for name in names])
    results = ask(client, "/reconstruct", body, FORM).json()["results"]
    given, made = (
        np.array([opened(base64.b64decode(r[key])) for r in results], float).reshape(4, -1)
        for key in ("input", "reconstruction")
    )
    correlation = np.corrcoef(given, made)[:4, 4:]
    assert (correlation.diagonal() > 0.5).all()
    assert (correlation.argmax(0) == np.arange(4)).all()


# -------------------------------------------------------------------------------------------------------- the real MNIST


@pytest.fixture(scope="module")
def mnist(data_root):
    """The 10,000 test images."""
    pixels = (data_root / "MNIST" / "raw" / "t10k-images-idx3-ubyte").read_bytes()
    return np.frombuffer(pixels, np.uint8, offset=16).reshape(-1, 28, 28)


@pytest.fixture(scope="module")
def mnist_scores(client, mnist):
    """Their scores, posted as one array."""
    return array(ask(client, "/score", npy(mnist), accept=NPY))


def test_about_one_in_a_hundred_mnist_images_is_flagged(client, mnist):
    """At the default alpha of 0.01, between 0.6 % and 1.5 % of the test images are called anomalies."""
    answer = ask(client, "/score", npy(mnist)).json()
    assert answer["alpha"] == 0.01
    assert len(answer["results"]) == 10_000
    assert 60 <= sum(result["is_anomaly"] for result in answer["results"]) <= 150


def test_most_of_fashion_mnist_is_flagged(client, data_root):
    """At least 55 % of clothes are called anomalies."""
    with np.load(data_root / "anomalies" / "fashion_mnist_test.npz") as arrays:
        answer = ask(client, "/score", npy(arrays["images"][:3000])).json()
    assert sum(result["is_anomaly"] for result in answer["results"]) >= 0.55 * 3000


def test_mnist_as_forms_scores_as_the_array_does(client, mnist, mnist_scores):
    """The same images as PNGs, 64 a request, several requests at once: the same scores within 1e-5."""
    forms = [
        form(*[file_part(f"{index}.png", png(mnist[index])) for index in range(start, start + 64)])
        for start in range(0, 640, 64)
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = pool.map(lambda body: ask(client, "/score", body, FORM).json()["results"], forms)
        results = list(itertools.chain.from_iterable(answers))
    assert [result["name"] for result in results] == [f"{index}.png" for index in range(640)]
    np.testing.assert_allclose([result["score"] for result in results], mnist_scores[:640], rtol=1e-5)


def test_mnist_from_many_clients_at_once_scores_as_the_array_does(server, mnist, mnist_scores):
    """The same images as PNGs, one a request: the same scores within 1e-5, whatever batches the server makes of them."""
    with httpx.Client(base_url=server.url, timeout=60) as crowd, ThreadPoolExecutor(24) as pool:
        answers = pool.map(lambda image: ask(crowd, "/score", png(image), "image/png").json()["results"][0], mnist[:480])
        np.testing.assert_allclose([result["score"] for result in answers], mnist_scores[:480], rtol=1e-5)


def test_embeddings_are_those_of_the_encoder(client, mnist, shipped_store):
    """/embed of the 10,000 test images is what the network's encoder says, within 1e-4."""
    served = client.get("/readyz").json()["model"]["version"]
    network = load_network(store.load(shipped_store / "mnist" / str(served)))
    with torch.inference_mode():
        expected = network.autoencoder.encode(normalise(torch.tensor(mnist))).numpy()
    found = array(ask(client, "/embed", npy(mnist), accept=NPY))
    assert found.shape == (10_000, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
