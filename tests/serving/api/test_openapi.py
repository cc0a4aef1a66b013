import json

import pytest

from app.serving.api.query import LEAST_RATE
from app.serving.errors import MEDIA_TYPE


@pytest.fixture(scope="module")
def document(client):
    """The OpenAPI document of the running server."""
    return client.get("/openapi.json").json()


def operations(document):
    return [(path, method, operation) for path, item in document["paths"].items() for method, operation in item.items()]


def test_every_endpoint_of_the_contract_is_described(document):
    """Each path has its method, a sentence and an answer."""
    described = {(path, method) for path, method, _ in operations(document)}
    assert {
        ("/score", "post"), ("/embed", "post"), ("/reconstruct", "post"), ("/decode", "post"), ("/livez", "get"),
        ("/readyz", "get"), ("/model", "get"), ("/model/report/{picture}", "get"), ("/latent", "get"),
    } <= described  # fmt: skip
    for path, method, operation in operations(document):
        assert operation.get("description") or operation.get("summary"), (path, method)
        assert "200" in operation["responses"], (path, method)


@pytest.mark.parametrize("path", ["/score", "/embed", "/reconstruct"])
def test_a_question_describes_its_bodies_parameters_and_errors(document, path):
    """The three forms of upload, alpha and preprocess with their ranges, and a problem for each status."""
    operation = document["paths"][path]["post"]
    bodies = operation["requestBody"]["content"]
    assert {"multipart/form-data", "application/x-npy", "image/png", "image/jpeg", "image/webp"} <= set(bodies)
    parameters = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
    if path == "/score":
        assert (parameters["alpha"]["minimum"], parameters["alpha"]["exclusiveMaximum"]) == (LEAST_RATE, 1)
    assert parameters["preprocess"]["enum"] == ["auto", "none", "digit"]
    for status in ("400", "413", "415", "422", "503", "504"):
        assert operation["responses"][status]["content"][MEDIA_TYPE]["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert "application/x-npy" in operation["responses"]["200"]["content"]


def test_no_operation_claims_the_frameworks_own_errors(document):
    """The framework's validation error is not part of the contract."""
    assert "HTTPValidationError" not in json.dumps(document)


def test_every_reference_leads_somewhere(document):
    """Each $ref names a component that is there; $defs of a part would not resolve."""

    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if isinstance(node.get("$ref"), str) else [])
            node = list(node.values())
        if isinstance(node, list):
            for part in node:
                yield from references(part)

    for reference in references(document):
        assert reference.startswith("#/")
        target = document
        for step in reference[2:].split("/"):
            target = target[step]


def test_operations_have_names_of_their_own(document):
    """Clients made from the document get one function an operation."""
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)


def test_the_documentation_page_is_served(client):
    """/docs is a page."""
    response = client.get("/docs")
    assert response.status_code == 200
    assert "text/html" in response.headers["content-type"]
