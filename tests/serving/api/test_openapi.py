import json
import re
from importlib.metadata import version

import pytest

from app.main import create_app
from app.serving.errors import MEDIA_TYPE
from app.serving.schemas import LEAST_RATE
from app.serving.settings import Settings


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
        ("/inspect", "post"), ("/model/calibration", "get"),
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
    for status in ("400", "408", "413", "415", "422", "503", "504"):
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


def test_operations_have_readable_names_of_their_own(document):
    """Generated clients have one function an operation, named without its method or path."""
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z]+)*", name) for name in names)
    assert not any(name.endswith(("_get", "_post")) for name in names)


@pytest.mark.parametrize("keys", [None, "test:" + "k" * 20])
def test_an_operation_asks_for_a_key_where_the_server_does(keys):
    """With keys, every operation but the public ones takes X-API-Key or Bearer; without keys, sending one is optional."""
    document = create_app(Settings(api_keys=keys)).app.openapi()
    assert {scheme["type"] for scheme in document["components"]["securitySchemes"].values()} == {"apiKey", "http"}
    secured = {path: operation["security"] for path, _, operation in operations(document) if "security" in operation}
    public = {"/livez", "/readyz", "/problems/{type}", "/v2/health/live", "/v2/health/ready"}
    assert set(secured) == set(document["paths"]) - public
    expected = [{"APIKeyHeader": []}, {"HTTPBearer": []}]
    assert all(security == (expected if keys else [{}, *expected]) for security in secured.values())


def test_there_is_one_version_string(document, client):
    """The installed package, the document and the Open Inference Protocol name the same version."""
    assert document["info"]["version"] == client.get("/v2").json()["version"] == version("oddigit")
