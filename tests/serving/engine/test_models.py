import asyncio
import base64
import shutil
import threading
from dataclasses import replace
from functools import partial

import httpx
import numpy as np
import pytest
from conftest import make_bundle
from live import serving, wait_until
from strokes import npy, png, stroke_images

from app.detection import store
from app.detection.bundle import SCORER, WEIGHTS
from app.detection.detector import Detector
from app.detection.imaging.centring import centre_images
from app.detection.store import StoreError
from app.serving import infer_schemas, schemas
from app.serving.engine.models import Model, Models, UnknownModel
from app.serving.engine.reload import Versions
from app.serving.engine.thread_stage import ThreadStage
from app.serving.telemetry.metrics import Metrics

IMAGES = centre_images(stroke_images(6, seed=9))[0]  # as `auto` leaves them
NPY, PNG = {"content-type": "application/x-npy"}, {"content-type": "image/png"}


def publish(root, name, seed):
    """The next version of `name` in the store."""
    return store.publish(make_bundle(seed, name), root)


@pytest.fixture
def root(tmp_path):
    """A store with the detectors mnist and other, which score differently."""
    publish(tmp_path / "store", "mnist", 0)
    publish(tmp_path / "store", "other", 1)
    return tmp_path / "store"


@pytest.fixture
def client(root, tmp_path):
    """A client of a server on `root`."""
    with (
        serving(tmp_path / "log", "--store", str(root), ODDIGIT_DRAIN_S="0") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def score(client, model=None, images=IMAGES):
    params = {"preprocess": "none"} if model is None else {"preprocess": "none", "model": model}
    response = client.post("/score", params=params, content=npy(images), headers=NPY)
    assert response.status_code == 200, response.text
    return response.json()


def served(client):
    """Name -> version of the models in service."""
    models = schemas.ModelList.model_validate(client.get("/models").json()).models
    return {model.name: model.version for model in models}


def samples(client, name):
    """The lines of one metric in the text of /metrics."""
    return [line for line in client.get("/metrics").text.splitlines() if line.startswith(name)]


def test_each_model_of_the_store_answers_by_its_name(client):
    """Every endpoint takes `model`; without it, the default answers; the v2 paths name the model."""
    listed = schemas.ModelList.model_validate(client.get("/models").json())
    assert listed.default == "mnist"
    assert [model.name for model in listed.models] == ["mnist", "other"]
    assert listed.memory_bytes > 10 * 2**20
    for name, seed in (("mnist", 0), ("other", 1)):
        bundle = make_bundle(seed, name)
        answer = score(client, name)
        assert answer["model"] == {"name": name, "version": 1}
        assert answer["threshold"] == bundle.card.threshold
        expected = Detector(bundle, "cpu").detect(IMAGES).scores.tolist()
        assert [result["score"] for result in answer["results"]] == pytest.approx(expected, rel=1e-5)
        query = {"model": name}
        for path in ("/embed", "/reconstruct"):
            single = client.post(path, params=query, content=png(IMAGES[0]), headers=PNG).json()
            assert single["model"]["name"] == name
        assert client.post("/decode", params=query, json={"embedding": [[0, 0]]}).json()["model"]["name"] == name
        assert client.get("/model", params=query).json()["threshold"] == bundle.card.threshold
        assert client.get("/drift", params=query).json()["model"]["name"] == name
        assert client.get("/latent", params=query).status_code == 404  # published without a report
        assert client.get(f"/v2/models/{name}").json()["name"] == name
        tensor = {"name": "images", "shape": [6, 784], "datatype": "UINT8", "data": IMAGES.ravel().tolist()}
        inferred = client.post(f"/v2/models/{name}/infer", json={"inputs": [tensor]}).json()
        assert inferred["model_name"] == name
        assert inferred["outputs"][0]["data"] == pytest.approx(expected, rel=1e-5)
    assert score(client)["model"]["name"] == "mnist"


def test_models_may_differ_in_the_number_of_coordinates(client, root):
    """/embed gives and /decode takes as many as the model has; the image that comes of an embedding is its reconstruction."""
    store.publish(make_bundle(1, "wide", latent_dim=5), root)
    wait_until(lambda: "wide" in served(client))
    query = {"model": "wide"}
    listed = {model["name"]: model["latent_dim"] for model in client.get("/models").json()["models"]}
    assert listed == {"mnist": 2, "other": 2, "wide": 5}
    embedding = client.post("/embed", params=query, content=png(IMAGES[0]), headers=PNG).json()["results"][0]["embedding"]
    assert len(embedding) == 5
    decoded = client.post("/decode", params=query, json={"embedding": [embedding] * 1024}).json()["images"][0]
    drawn = client.post("/reconstruct", params=query, content=png(IMAGES[0]), headers=PNG).json()["results"][0]
    assert decoded == drawn["reconstruction"]
    refused = client.post("/decode", params=query, json={"embedding": [[0, 0]]})
    assert refused.status_code == 422
    assert "5 coordinates" in refused.json()["detail"]
    outputs = {output["name"]: output["shape"] for output in client.get("/v2/models/wide").json()["outputs"]}
    assert outputs["embedding"] == [-1, 5]


def test_each_model_has_its_own_preparation(client, root):
    """`auto` is what the card says, for files, arrays and tensors; a request may say otherwise."""
    bundle = make_bundle(1, "resized")
    store.publish(replace(bundle, card=bundle.card.model_copy(update={"preprocess": "none"})), root)
    wait_until(lambda: "resized" in served(client))
    assert client.get("/model", params={"model": "resized"}).json()["preprocess"] == "none"
    assert {each["name"]: each["preprocess"] for each in client.get("/models").json()["models"]}["resized"] == "none"
    shifted = np.roll(IMAGES[0], 5, axis=1)
    large = png(np.pad(shifted, 30).repeat(2, axis=0).repeat(2, axis=1))
    for query, steps in (({}, ["resized"]), ({"preprocess": "digit"}, ["cropped", "thinned", "centred"])):
        sent = {"params": {"model": "resized", **query}, "headers": PNG}
        (result,) = client.post("/score", content=large, **sent).json()["results"]
        assert (result["preprocess"], bool(result["warnings"])) == (steps, bool(query))
    (result,) = client.post("/score", params={"model": "resized"}, content=npy(shifted[None]), headers=NPY).json()["results"]
    (other,) = client.post("/score", params={"model": "mnist"}, content=npy(shifted[None]), headers=NPY).json()["results"]
    assert (result["preprocess"], other["preprocess"]) == ([], ["centred"])
    tensor = {"name": "x", "shape": [1, 784], "datatype": "UINT8", "data": shifted.ravel().tolist()}
    inferred = client.post("/v2/models/resized/infer", json={"inputs": [tensor]}).json()
    assert inferred["outputs"][0]["data"] == pytest.approx([result["score"]], rel=1e-5)
    file = {"name": "x", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(large).decode()]}
    inferred = client.post("/v2/models/resized/infer", json={"inputs": [file]}).json()["outputs"][0]["data"]
    (single,) = client.post("/score", params={"model": "resized"}, content=large, headers=PNG).json()["results"]
    assert inferred == pytest.approx([single["score"]], rel=1e-5)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/score"), ("POST", "/embed"), ("POST", "/reconstruct"), ("POST", "/decode"), ("GET", "/model"),
        ("GET", "/model/report/loss.png"), ("GET", "/latent"), ("GET", "/drift"),
    ],
)  # fmt: skip
def test_an_unknown_model_is_not_found(strict_client, method, path):
    """The problem lists the models in service."""
    response = strict_client.request(method, path, params={"model": "nowhere"}, content=png(IMAGES[0]), headers=PNG)
    assert response.status_code == 404
    problem = schemas.Problem.model_validate(response.json())
    assert "mnist" in problem.detail
    assert "nowhere" not in problem.detail


def test_an_unknown_model_of_the_open_inference_protocol_is_not_found(strict_client):
    """Its body has the protocol's own form."""
    for path in ("/v2/models/nowhere", "/v2/models/nowhere/ready", "/v2/models/nowhere/versions/1"):
        response = strict_client.get(path)
        assert response.status_code == 404
        infer_schemas.InferError.model_validate(response.json())


def test_a_reload_of_one_model_leaves_the_other_alone(client, root):
    """Version, traffic record and metrics of the other stay as they were; a defect of one is reported under its name."""
    score(client, "mnist")
    score(client, "other")
    publish(root, "other", 2)
    wait_until(lambda: served(client) == {"mnist": 1, "other": 2})
    assert client.get("/drift", params={"model": "mnist"}).json()["images"] == len(IMAGES)
    assert client.get("/drift", params={"model": "other"}).json()["images"] == 0
    assert score(client)["threshold"] == make_bundle(0).card.threshold
    assert score(client, "other")["threshold"] == make_bundle(2, "other").card.threshold
    assert 'oddigit_reloads_total{model="mnist",outcome="taken_up"} 1.0' in samples(client, "oddigit_reloads")
    assert 'oddigit_reloads_total{model="other",outcome="taken_up"} 2.0' in samples(client, "oddigit_reloads")
    broken = publish(root.parent / "staging", "other", 3).rename(root / "other" / "3")
    (broken / WEIGHTS).write_bytes(b"damaged")
    wait_until(lambda: client.get("/readyz").json()["refused_versions"])
    (refused,) = client.get("/readyz").json()["refused_versions"]
    assert (refused["model"], refused["version"]) == ("other", 3)
    listed = schemas.ModelList.model_validate(client.get("/models").json()).models
    assert {model.name: model.stored_versions for model in listed} == {"mnist": [1], "other": [1, 2, 3]}
    assert served(client) == {"mnist": 1, "other": 2}


def test_a_model_that_appears_is_served(client, root):
    """A new name of the store is in service soon; one whose only version is damaged is not."""
    publish(root, "third", 2)
    wait_until(lambda: served(client) == {"mnist": 1, "other": 1, "third": 1})
    assert score(client, "third")["model"]["name"] == "third"


def test_a_damaged_model_does_not_keep_the_server_from_starting(root, tmp_path):
    """The default serves; the other is not found until it is repaired, and /readyz says why."""
    content = (root / "other" / "1" / SCORER).read_bytes()
    (root / "other" / "1" / SCORER).write_bytes(b"damaged")
    with (
        serving(tmp_path / "log", "--store", str(root), ODDIGIT_DRAIN_S="0") as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        assert served(client) == {"mnist": 1}
        assert client.get("/model", params={"model": "other"}).status_code == 404
        assert [refused["model"] for refused in client.get("/readyz").json()["refused_versions"]] == ["other"]
        (root / "other" / "1" / SCORER).write_bytes(content)
        wait_until(lambda: served(client) == {"mnist": 1, "other": 1})


def test_the_setting_limits_what_is_served(root, tmp_path):
    """ODDIGIT_MODELS lists the models besides the default, which may be any of the store."""
    publish(root, "third", 2)
    variables = {"ODDIGIT_MODEL": "other", "ODDIGIT_MODELS": "third, other", "ODDIGIT_DRAIN_S": "0"}
    with serving(tmp_path / "log", "--store", str(root), **variables) as server:
        listed = httpx.get(f"{server.url}/models", timeout=60).json()
    assert listed["default"] == "other"
    assert [model["name"] for model in listed["models"]] == ["other", "third"]


def test_images_that_are_not_watched_are_scored_but_not_counted(client):
    """`watch=0` leaves verdict metrics and drift alone; the response is the same."""
    watched = score(client)
    counts = samples(client, "oddigit_images_total"), samples(client, "oddigit_score"), client.get("/drift").json()
    sent = {"content": npy(IMAGES), "headers": NPY}
    assert client.post("/score", params={"preprocess": "none", "watch": "0"}, **sent).json() == watched
    tensor = {"name": "images", "shape": [6, 784], "datatype": "UINT8", "data": IMAGES.ravel().tolist()}
    client.post("/v2/models/mnist/infer", params={"watch": "0"}, json={"inputs": [tensor]}).raise_for_status()
    after = samples(client, "oddigit_images_total"), samples(client, "oddigit_score"), client.get("/drift").json()
    assert after == counts
    client.post("/score", params={"watch": "1"}, **sent).raise_for_status()
    assert client.get("/drift").json()["images"] == 2 * len(IMAGES)
    assert client.post("/score", params={"watch": "maybe"}, **sent).status_code == 422


def load_detector(folder):
    return Detector(store.load(folder), "cpu")


def models(root, default="mnist", load=load_detector, list_names=store.names):
    """The models of a store, loaded by `load` and listed by `list_names`."""
    metrics = Metrics()

    def make(name):
        versions = Versions(root, name, None, load)
        arrays = ThreadStage("arrays", deadline_s=60)
        return Model(versions, metrics.for_model(name), max_batch_size=8, arrays=arrays, drift_level=100.0)

    return Models(default, make, partial(list_names, root))


def test_the_default_must_be_loadable(root):
    """Without a version of the default nothing starts; without one of another model, the default does."""
    (root / "other" / "1" / WEIGHTS).unlink()
    found = models(root)
    asyncio.run(found.load())
    assert [model.name for model in found] == ["mnist"]
    with pytest.raises(UnknownModel, match="in service: mnist"):
        found.find("other")
    with pytest.raises(StoreError):
        asyncio.run(models(root, "other").load())


def test_a_model_that_hangs_while_it_is_loaded_delays_no_other(root):
    """The start does not wait for it; it is in service when it is loaded."""
    may_load = threading.Event()

    def load_when_allowed(folder):
        if folder.parent.name == "other":
            may_load.wait(60)
        return load_detector(folder)

    async def start():
        found = models(root, load=load_when_allowed)
        await found.load(timeout_s=0)
        early = [model.name for model in found]
        may_load.set()
        await both(found)
        return early, [model.name for model in found]

    assert asyncio.run(start()) == (["mnist"], ["mnist", "other"])


async def both(found):
    """Wait until both models are loaded."""
    async with asyncio.timeout(60):
        while len(list(found)) < 2:
            await asyncio.sleep(0.01)


def test_a_model_that_the_start_did_not_wait_for_takes_up_new_versions(root):
    """Though the store was listed so slowly that the models were watched before this one was known."""
    may_list = threading.Event()

    def list_slowly(store_root):
        may_list.wait(60)
        return store.names(store_root)

    async def start():
        found = models(root, list_names=list_slowly)
        await found.load(timeout_s=0)
        watching = asyncio.create_task(found.watch())
        await asyncio.sleep(0.1)  # it has begun, and looks for new models after POLL_S
        may_list.set()
        await both(found)
        store.publish(make_bundle(1, "other"), root)
        for _ in range(500):
            await asyncio.sleep(0.02)
            if (version := found.find("other").inference.detector.bundle.card.version) > 1:
                break
        watching.cancel()
        return version

    assert asyncio.run(start()) == 2


def test_a_model_that_is_removed_from_the_store_serves_on(root):
    """As with versions, the model in service needs its files no more."""
    found = models(root)

    async def load_and_remove():
        await found.load()
        shutil.rmtree(root / "other")
        await found.find("other").try_load()

    asyncio.run(load_and_remove())
    assert found.find("other").inference.detector.bundle.card.name == "other"
