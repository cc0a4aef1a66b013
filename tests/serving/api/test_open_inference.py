import base64
import json

import numpy as np
import pytest
from strokes import npy, png, stroke_images

from app.serving import infer_schemas

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
    answer = infer_schemas.InferResponse.model_validate(response.json())
    return {output.name: np.array(output.data).reshape(output.shape) for output in answer.outputs}


def infer_binary(client, blob, shape, datatype="UINT8", outputs=(), parameters=(("binary_data_output", True),), **changes):
    """Send a tensor as binary data after the JSON, as Triton's client does by default."""
    described = {"name": "x", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(blob), **changes}}
    request = {"inputs": [described], "parameters": dict(parameters)} | ({"outputs": outputs} if outputs else {})
    text = json.dumps(request).encode()
    return client.post(INFER, content=text + blob, headers={"inference-header-content-length": str(len(text))})


def binary_outputs(response):
    """Name -> array, of an answer with binary data."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    answer = infer_schemas.InferResponse.model_validate_json(response.content[:length])
    found, start = {}, length
    for output in answer.outputs:
        if output.data is not None:
            found[output.name] = np.array(output.data).reshape(output.shape)
            continue
        dtype = {"FP32": "<f4", "FP64": "<f8", "BOOL": "?"}[output.datatype]
        end = start + output.parameters["binary_data_size"]
        found[output.name] = np.frombuffer(response.content[start:end], dtype).reshape(output.shape)
        start = end
    assert start == len(response.content)
    return found


def elements(*files):
    """A binary BYTES tensor."""
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def scored(client, images=IMAGES, **parameters):
    """What /score says of the same images."""
    return client.post("/score", content=npy(images), headers={"content-type": "application/x-npy"}, params=parameters).json()


@pytest.mark.parametrize("count", [1, 5, 300])
def test_a_tensor_is_judged_as_an_array_is(client, count):
    """The same scores, p-values, verdicts and errors as from /score, however many images."""
    images = stroke_images(count, seed=count)
    found, expected = outputs(infer(client, tensor(images))), scored(client, images)["results"]
    for name in ("score", "p_value", "is_anomaly", "reconstruction_error"):
        np.testing.assert_allclose(found[name], [result[name] for result in expected], rtol=1e-5)
    assert found["embedding"].shape == (count, 2)
    assert found["reconstruction"].shape == (count, 28, 28)


@pytest.mark.parametrize("count", [1, 256, 2000])
def test_binary_data_are_judged_as_an_array_is(client, count):
    """Every output, named by none, as binary data; the input has any name."""
    images = stroke_images(count, seed=count)
    found, expected = (
        binary_outputs(infer_binary(client, images.tobytes(), list(images.shape))),
        scored(client, images)["results"],
    )
    for name in ("score", "p_value", "is_anomaly", "reconstruction_error"):
        np.testing.assert_allclose(found[name], [result[name] for result in expected], rtol=1e-5)
    assert found["reconstruction"].shape == (count, 28, 28)


@pytest.mark.parametrize(
    "shape", [(5, 28, 28), (5, 784), (5, 1, 28, 28), (5, 28, 28, 1), (28, 28), (784,), (1, 28, 28), (28, 28, 1)]
)
def test_a_batch_or_one_image_comes_in_any_of_the_usual_shapes(client, shape):
    """With a channel first or last, flat, or without a batch; in JSON and as binary data."""
    images = np.resize(IMAGES, shape)
    expected = [result["score"] for result in scored(client, images.reshape(-1, 28, 28))["results"]]
    for found in (outputs(infer(client, tensor(images))), binary_outputs(infer_binary(client, images.tobytes(), list(shape)))):
        assert found["score"].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("datatype", "dtype", "scale"),
    [
        ("FP32", "<f4", 1),
        ("FP64", "<f8", 1),
        ("FP32", "<f4", 255),
        ("FP16", "<f2", 255),
        ("INT64", "<i8", 255),
        ("UINT16", "<u2", 255),
    ],
)
def test_floats_and_wide_integers_are_the_same_pixels(client, datatype, dtype, scale):
    """Integers reach to 255; floats to 1, or to 255 where the input's parameter float_max says so."""
    expected = [result["score"] for result in scored(client)["results"]]
    values = (IMAGES / (255 / scale)).astype(dtype)
    parameters = {"float_max": 255} if scale == 255 and datatype.startswith("FP") else {}
    sent = infer_binary(client, values.tobytes(), [5, 28, 28], datatype, **parameters)
    in_json = infer(client, tensor(data=values.tolist(), datatype=datatype, parameters=parameters))
    for found in (binary_outputs(sent), outputs(in_json)):
        assert found["score"].tolist() == pytest.approx(expected, rel=1e-5)


def test_image_files_are_prepared_as_uploads_are(client, samples):
    """BYTES: binary data, or base64 in JSON; the scores are those of /score for the same files."""
    files = [(samples / name).read_bytes() for name in ("seven.png", "two.jpg")] + [png(IMAGES[0])]
    form = [("file", (str(index), file)) for index, file in enumerate(files)]
    expected = client.post("/score", files=form).json()["results"]
    in_json = {"shape": [3, 1], "datatype": "BYTES", "data": [base64.b64encode(file).decode() for file in files]}
    for found in (
        binary_outputs(infer_binary(client, elements(*files), [3], "BYTES")),
        outputs(infer(client, tensor(**in_json))),
    ):
        for name in ("score", "p_value", "is_anomaly"):
            assert found[name].tolist() == pytest.approx([result[name] for result in expected], rel=1e-5)


def test_outputs_are_binary_where_the_request_says_so(client):
    """For all outputs, and for each otherwise than for all."""
    named = [{"name": "p_value", "parameters": {"binary_data": False}}, {"name": "score"}, {"name": "is_anomaly"}]
    response = infer_binary(client, IMAGES.tobytes(), [5, 28, 28], outputs=named)
    assert list(binary_outputs(response)) == ["p_value", "score", "is_anomaly"]
    assert [
        output.get("data") is None
        for output in json.loads(response.content[: int(response.headers["inference-header-content-length"])])["outputs"]
    ] == [False, True, True]
    only = infer(client, outputs=[{"name": "score", "parameters": {"binary_data": True}}])
    assert binary_outputs(only)["score"].tolist() == pytest.approx([result["score"] for result in scored(client)["results"]])
    assert infer_binary(client, IMAGES.tobytes(), [5, 28, 28], parameters=()).headers["content-type"] == "application/json"


def test_images_that_lie_off_the_middle_are_centred_unless_the_request_says_no(client):
    """As /score does it with arrays."""
    shifted = np.roll(IMAGES, 3, axis=2)
    for preprocess in ("auto", "none"):
        expected = [result["score"] for result in scored(client, shifted, preprocess=preprocess)["results"]]
        found = outputs(infer(client, tensor(shifted), parameters={"preprocess": preprocess}))
        assert found["score"].tolist() == pytest.approx(expected, rel=1e-5)


def test_many_reconstructions_come_only_as_binary_data(client):
    """In JSON, without names, more than ODDIGIT_MAX_PICTURES are left out; asked for by name, they are refused."""
    images = np.zeros((1001, 28, 28), np.uint8)
    assert "reconstruction" not in outputs(infer(client, tensor(images)))
    assert infer(client, tensor(images), outputs=[{"name": "reconstruction"}]).status_code == 413
    assert binary_outputs(infer_binary(client, images.tobytes(), [1001, 28, 28]))["reconstruction"].shape == (1001, 28, 28)


@pytest.mark.parametrize(
    ("blob", "shape", "datatype", "status"),
    [
        (b"\0" * 784, [2, 784], "UINT8", 422),
        (b"\0" * 785, [1, 784], "UINT8", 422),
        (b"", [1, 784], "UINT8", 422),
        (np.full(784, np.nan, "<f4").tobytes(), [1, 784], "FP32", 422),
        (np.full(784, 2, "<f4").tobytes(), [1, 784], "FP32", 422),
        (np.full(784, -1, "<i4").tobytes(), [1, 784], "INT32", 422),
        (np.full(784, 256, "<u8").tobytes(), [1, 784], "UINT64", 422),
        (b"", [1], "BYTES", 422),
        (b"\xff\xff\xff\xff", [1], "BYTES", 422),
        (elements(png(IMAGES[0])) + b"x", [1], "BYTES", 422),
        (elements(b""), [1], "BYTES", 400),
        (elements(b"GIF89a"), [1], "BYTES", 400),
        (elements(png(IMAGES[0]), png(IMAGES[0])[:60]), [2], "BYTES", 400),
        (elements(b"%PDF-1.7"), [1], "BYTES", 415),
        (elements(*[b""] * 65), [65], "BYTES", 413),
    ],
    ids=lambda value: str(value)[:20],
)
def test_binary_data_that_are_no_images_are_refused(client, blob, shape, datatype, status):
    """Wrong lengths, values outside of the range, and files that cannot be decoded."""
    response = infer_binary(client, blob, shape, datatype)
    assert response.status_code == status, response.text
    assert infer_schemas.InferError.model_validate(response.json()).error


@pytest.mark.parametrize("length", ["", "x", "-1", "1e3", "99999999", "10", "0", "9" * 5000])
def test_a_wrong_length_of_the_json_is_refused(client, length):
    """The header must say where the JSON ends."""
    text = json.dumps({"inputs": [tensor()]}).encode()
    response = client.post(INFER, content=text, headers={"inference-header-content-length": length})
    assert response.status_code == 400, response.text


def test_an_input_has_its_elements_once(client):
    """Not in the JSON and after it, and not nowhere."""
    assert infer(client, tensor(data=None)).status_code == 422
    assert infer(client, tensor(parameters={"binary_data_size": 0})).status_code == 422


@pytest.mark.parametrize("shape", [(5, 28, 28), (5, 784), (5, 1, 28, 28), (5, 28, 28, 1)])
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


def test_an_output_is_given_once(client):
    """Sixteen copies of the reconstructions of 13,000 images would take half a gigabyte."""
    response = infer(client, tensor(), outputs=[{"name": "score"}, {"name": "embedding"}, {"name": "score"}])
    assert (response.status_code, "more than once" in response.json()["error"]) == (422, True)


def test_alpha_is_a_parameter_and_the_id_comes_back(client):
    """The verdicts are those of /score at the same alpha; clients match answers to requests by their id."""
    response = infer(client, parameters={"alpha": 0.3, "binary_data": True}, id="seven")
    assert outputs(response)["is_anomaly"].tolist() == [r["is_anomaly"] for r in scored(client, alpha=0.3)["results"]]
    answer = response.json()
    assert (answer["id"], answer["model_name"]) == ("seven", "mnist")
    assert answer["model_version"] == str(scored(client)["model"]["version"])


@pytest.mark.parametrize("query", ["alpha=0.3", "model=other", "preprocess=none"])
def test_parameters_of_score_are_refused_in_the_query(client, query):
    """They would have no effect there: alpha and preprocess are parameters in the body, the model is in the path."""
    response = infer(client, path=f"{INFER}?{query}")
    assert (response.status_code, "there are: watch" in response.json()["error"]) == (422, True)


def test_the_model_tells_its_inputs_and_outputs_as_they_are(client):
    """Each output that is named comes with the datatype and shape that the model's description gives."""
    version = client.get("/readyz").json()["model"]["version"]
    described = client.get(f"/v2/models/mnist/versions/{version}").json()
    assert described == client.get("/v2/models/mnist").json()
    model = infer_schemas.InferModel.model_validate(described)
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
    """And its version and extensions, at both addresses that clients use."""
    assert client.get("/v2/").json() == client.get("/v2").json()
    assert "binary_tensor_data" in client.get("/v2").json()["extensions"]
    assert infer_schemas.InferServer.model_validate(client.get("/v2").json()).name == "oddigit"


def test_clients_of_triton_find_the_configuration_and_the_index(client):
    """The configuration says the same as the metadata; the index lists what /models lists."""
    version = client.get("/readyz").json()["model"]["version"]
    config = infer_schemas.InferModelConfig.model_validate(client.get("/v2/models/mnist/config").json())
    assert client.get(f"/v2/models/mnist/versions/{version}/config").json() == config.model_dump()
    described = infer_schemas.InferModel.model_validate(client.get("/v2/models/mnist").json())
    assert [(t.name, t.data_type.removeprefix("TYPE_"), t.dims) for t in config.output] == [
        (t.name, t.datatype, t.shape) for t in described.outputs
    ]
    index = client.post("/v2/repository/index", json={"ready": True}).json()
    listed = client.get("/models").json()["models"]
    assert [(entry["name"], entry["version"]) for entry in index] == [(m["name"], str(m["version"])) for m in listed]


@pytest.mark.parametrize("path", ["/v2/models/other", "/v2/models/mnist/versions/999", "/v2/models/mnist/versions/999/ready"])
def test_a_model_that_is_not_served_is_not_found(client, path):
    """The error says what is in service, in the protocol's own form."""
    response = client.get(path)
    assert response.status_code == 404
    assert "mnist" in infer_schemas.InferError.model_validate(response.json()).error


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"shape": [4, 28, 28]}, 422),
        ({"shape": [5, 27, 28]}, 422),
        ({"shape": [3920]}, 422),
        ({"shape": [-5, 28, 28]}, 422),
        ({"shape": [5, 28, 28.5]}, 422),
        ({"datatype": "FP32"}, 422),
        ({"datatype": "BYTES", "shape": [1], "data": ["no base64"]}, 422),
        ({"datatype": "BYTES", "shape": [2], "data": ["AAAA"]}, 422),
        ({"datatype": "COMPLEX64"}, 422),
        ({"shape": [100_001, 784]}, 413),
        ({"shape": [10**4000, 10**4000], "datatype": "BYTES", "data": ["AAAA"]}, 422),
        ({"data": [256] * 3920}, 422),
        ({"data": [-1] * 3920}, 422),
        ({"data": [0.5] * 3920}, 422),
        ({"data": [True] * 3920}, 422),
        ({"data": [True] + [0] * 3919}, 422),
        ({"data": ["0"] * 3920}, 422),
        ({"data": ["x" * 1_000_000] + [0] * 10_000}, 422),
        ({"data": ["x" * 1_000_000] + [0] * 200_000}, 400),
        ({"data": [None] * 3920}, 422),
        ({"data": [10**400] + [0] * 3919}, 422),
        ({"data": [2**63] + [0] * 3919}, 422),
        ({"data": [[0] * 784] * 4 + [[0] * 783]}, 422),
        ({"data": []}, 422),
        ({"data": "AAAA"}, 422),
        ({"data": [[]] * 200_000}, 400),
        ({"data": [{}] * 200_000}, 400),
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_tensor_that_is_none_is_refused_in_the_protocols_form(client, change, status):
    """Shapes, types and numbers that are no images, and nests of lists that would fill the memory."""
    response = infer(client, tensor(**change))
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert infer_schemas.InferError.model_validate(response.json()).error


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"inputs": [{"data": [1]}], "data": [' + b"1," * 20_000 + b"1]}", 400),
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
    assert infer_schemas.InferError.model_validate(response.json()).error


@pytest.mark.parametrize("alpha", [0, 1, -0.5, 1e-12, 1e-6, "0.1"])
def test_an_alpha_that_cannot_be_kept_is_refused(client, alpha):
    """Outside of its range, or too small for the calibration."""
    response = infer(client, parameters={"alpha": alpha})
    assert response.status_code == 422
    assert infer_schemas.InferError.model_validate(response.json()).error


def test_two_inputs_and_unknown_outputs_are_refused(client):
    """There is one input, and the outputs are those of the description."""
    assert infer(client, tensor(), tensor()).status_code == 422
    assert infer(client, outputs=[{"name": "logits"}]).status_code == 422


def test_an_array_of_another_key_is_not_scored(client):
    """The array of numbers is cut out of the text by its key, which may be written with escapes elsewhere."""
    images = IMAGES[:1]
    text = json.dumps({"inputs": [tensor(images)], "parameters": {"data": [255] * 784}})
    assert infer(client, tensor(images), parameters={"data": [255] * 784}).status_code == 200
    escaped = text.replace('"data"', '"\\u0064ata"', 1)
    answer = client.post(INFER, content=escaped)
    assert answer.status_code == 422 and "another array named data" in answer.json()["error"]
