import pytest
from fuzzing import fuzz
from strokes import png, stroke_images


@pytest.fixture(scope="module")
def document(client):
    """The OpenAPI document of the running server."""
    return client.get("/openapi.json").json()


def test_the_server_does_what_its_description_says(server, tmp_path):
    """Every operation, fuzzed from the OpenAPI document with all of schemathesis's checks: good requests are accepted, bad ones
    refused, and each answer has a status, a type and a shape that the document names."""
    pytest.importorskip("schemathesis")
    fuzz(server.url, tmp_path)


@pytest.mark.parametrize("parameter", ["alpha", "fdr"])
def test_the_ranges_of_rates_are_those_of_the_server(client, document, parameter):
    """What the document allows is not refused as no rate at all; it may be too small for the calibration."""
    operation = document["paths"]["/score"]["post"]
    (schema,) = [entry["schema"] for entry in operation["parameters"] if entry["name"] == parameter]
    smallest = schema.get("minimum") or 5e-324
    for value in (smallest, 1 - 1e-16):
        body = png(stroke_images(1, seed=0)[0])
        response = client.post("/score", params={parameter: value}, content=body, headers={"content-type": "image/png"})
        assert response.status_code == 200 or "calibration images" in response.json()["detail"], response.text


def test_the_document_says_how_far_out_a_point_may_lie(document):
    """/decode takes points with the coordinates of any model; the range of a coordinate is in the document."""
    point = document["components"]["schemas"]["DecodeRequest"]["properties"]["embedding"]["items"]
    assert point["minItems"] == 1
    assert point["items"]["maximum"] == -point["items"]["minimum"] == 1e6
