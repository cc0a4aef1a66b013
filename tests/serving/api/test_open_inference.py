import numpy as np
import pytest
from strokes import npy, stroke_images

from app.serving import schemas

IMAGES = stroke_images(5, seed=3)
INFER = "/v2/models/mnist/infer"


def tensor(images=IMAGES, **changes):
    """A request's only input."""
    return {"name": "images", "shape": list(images.shape), "datatype": "UINT8", "data": images.ravel().tolist(), **changes}


def infer(client, *inputs, path=INFER, **others):
    return client.post(path, json={"inputs": list(inputs) or [tensor()], **others})


def outputs(response):
    """Name -> array, of an answer that is as the schema says."""
    assert response.status_code == 200, response.text
    answer = schemas.InferResponse.model_validate(response.json())
    return {output.name: np.array(output.data).reshape(output.shape) for output in answer.outputs}


def scored(client, images=IMAGES, **parameters):
    """What /score says of the same images."""
    parameters = {"preprocess": "none", **parameters}
    return client.post("/score", content=npy(images), headers={"content-type": "application/x-npy"}, params=parameters).json()


@pytest.mark.parametrize("count", [1, 5, 300])
def test_a_tensor_is_judged_as_an_array_is(client, count):
    """The same scores, p-values, verdicts and errors as from /score, however many images."""
    images = stroke_images(count, seed=count)
    found, expected = outputs(infer(client, tensor(images))), scored(client, images)["results"]
    for name in ("score", "p_value", "is_anomaly", "reconstruction_error"):
        np.testing.assert_allclose(found[name], [result[name] for result in expected], rtol=1e-5)
    assert found["embedding"].shape == (count, 2)
    assert "reconstruction" not in found


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 784), (5, 1, 28, 28)])
def test_numbers_come_in_one_list_or_in_nested_ones(client, shape):
    """Both are the same tensor."""
    shaped = IMAGES.reshape(shape)
    flat, nested = (
        outputs(infer(client, tensor(shaped, data=data)))["score"] for data in (shaped.ravel().tolist(), shaped.tolist())
    )
    assert np.array_equal(flat, nested)


def test_only_the_outputs_that_are_named_come_and_in_that_order(client):
    """A reconstruction comes where it is asked for: pixels from 0 to 1."""
    found = outputs(infer(client, outputs=[{"name": "reconstruction"}, {"name": "score"}]))
    assert list(found) == ["reconstruction", "score"]
    assert found["reconstruction"].shape == (5, 28, 28)
    assert 0 <= found["reconstruction"].min() <= found["reconstruction"].max() <= 1


def test_alpha_is_a_parameter_and_the_id_comes_back(client):
    """The verdicts are those of /score at the same alpha; clients match answers to requests by their id."""
    response = infer(client, parameters={"alpha": 0.3, "binary_data": True}, id="seven")
    assert outputs(response)["is_anomaly"].tolist() == [r["is_anomaly"] for r in scored(client, alpha=0.3)["results"]]
    answer = response.json()
    assert (answer["id"], answer["model_name"]) == ("seven", "mnist")
    assert answer["model_version"] == str(scored(client)["model"]["version"])


def test_the_model_tells_its_inputs_and_outputs_as_they_are(client):
    """Each output that is named comes with the datatype and shape that the model's description gives."""
    version = client.get("/readyz").json()["model"]["version"]
    described = client.get(f"/v2/models/mnist/versions/{version}").json()
    assert described == client.get("/v2/models/mnist").json()
    model = schemas.InferModel.model_validate(described)
    assert (model.name, model.versions, model.inputs[0].shape) == ("mnist", [str(version)], [-1, 28, 28])
    answer = infer(client, outputs=[{"name": output.name} for output in model.outputs]).json()
    for output, given in zip(model.outputs, answer["outputs"], strict=True):
        assert (given["name"], given["datatype"]) == (output.name, output.datatype)
        assert given["shape"] == [5, *output.shape[1:]]


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/mnist/ready", {"name": "mnist", "ready": True}),
    ],
)
def test_probes_say_that_questions_are_answered(client, path, answer):
    """The server lives, is ready, and so is its model."""
    response = client.get(path)
    assert (response.status_code, response.json()) == (200, answer)


def test_the_server_tells_its_name(client):
    """And its version, and that it has no extensions."""
    assert schemas.InferServer.model_validate(client.get("/v2").json()).name == "oddigit"


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/mnist/versions/999", "/v2/models/mnist/versions/999/ready"])
def test_a_model_that_is_not_served_is_not_found(client, path):
    """The error says what is in service, in the protocol's own form."""
    response = client.get(path)
    assert response.status_code == 404
    assert "mnist" in schemas.InferError.model_validate(response.json()).error


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"shape": [4, 28, 28]}, 422),
        ({"shape": [5, 27, 28]}, 422),
        ({"shape": [3920]}, 422),
        ({"shape": [-5, 28, 28]}, 422),
        ({"shape": [5, 28, 28.5]}, 422),
        ({"datatype": "FP32"}, 422),
        ({"name": "pixels"}, 422),
        ({"data": [256] * 3920}, 422),
        ({"data": [-1] * 3920}, 422),
        ({"data": [0.5] * 3920}, 422),
        ({"data": [True] * 3920}, 422),
        ({"data": [True] + [0] * 3919}, 422),
        ({"data": ["0"] * 3920}, 422),
        ({"data": ["x" * 1_000_000] + [0] * 200_000}, 422),
        ({"data": [None] * 3920}, 422),
        ({"data": [10**400] + [0] * 3919}, 422),
        ({"data": [2**63] + [0] * 3919}, 422),
        ({"data": [[0] * 784] * 4 + [[0] * 783]}, 422),
        ({"data": []}, 422),
        ({"data": "AAAA"}, 422),
        ({"data": [[]] * 100_000}, 400),
        ({"data": [{}] * 100_000}, 400),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_tensor_that_is_none_is_refused_in_the_protocols_form(client, change, status):
    """Shapes, types and numbers that are no images, and nests of lists that would fill the memory."""
    response = infer(client, tensor(**change))
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert schemas.InferError.model_validate(response.json()).error


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b"[]", 422),
        (b"{}", 422),
        (b'{"inputs": []}', 422),
        (b'{"inputs": [1]}', 422),
        (b'{"inputs": null, "id": 7}', 422),
    ],
)
def test_a_body_that_is_no_request_is_refused(client, body, status):
    """Broken JSON, and JSON that is something else."""
    response = client.post(INFER, content=body)
    assert response.status_code == status, response.text
    assert schemas.InferError.model_validate(response.json()).error


@pytest.mark.parametrize("alpha", [0, 1, -0.5, 1e-12, 1e-6, "0.1"])
def test_an_alpha_that_cannot_be_kept_is_refused(client, alpha):
    """Outside of its range, or too small for the calibration."""
    response = infer(client, parameters={"alpha": alpha})
    assert response.status_code == 422
    assert schemas.InferError.model_validate(response.json()).error


def test_two_inputs_and_unknown_outputs_are_refused(client):
    """There is one input, and the outputs are those of the description."""
    assert infer(client, tensor(), tensor()).status_code == 422
    assert infer(client, outputs=[{"name": "logits"}]).status_code == 422
