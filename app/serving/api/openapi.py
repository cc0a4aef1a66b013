"""The parts of the OpenAPI document that FastAPI cannot derive from signatures: upload bodies, problems, API keys."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, get_args

from fastapi import FastAPI, Query, Security
from fastapi.encoders import jsonable_encoder
from fastapi.security import APIKeyHeader, HTTPBearer
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.detection.imaging.decode import Preprocess
from app.serving import infer_schemas, schemas
from app.serving.api.query import JSON, NPY
from app.serving.api.uploads import FORM, IMAGE_TYPES
from app.serving.errors import BY_STATUS, MEDIA_TYPE

Entry = dict[str, Any]

# The two ways to send a key, for the document alone: auto_error=False leaves the check to the middleware.
API_KEY = [Security(APIKeyHeader(name="X-API-Key", auto_error=False)), Security(HTTPBearer(auto_error=False))]

_MODEL = "Name of a model, see /models; default: the server's own."
ModelName = Annotated[str | None, Query(description=_MODEL)]  # the query parameter of endpoints that describe a model

BINARY: Entry = {"type": "string", "format": "binary"}
_RATE: Entry = {"type": "number", "minimum": schemas.LEAST_RATE, "exclusiveMaximum": 1}
_REFERENCE = "#/components/schemas/{model}"
_REQUEST_MODELS: tuple[type[BaseModel], ...] = (schemas.DecodeRequest, infer_schemas.InferRequest)


def problems(*statuses: int) -> dict[int | str, Entry]:
    """The `responses` of an operation that can fail with these statuses, as RFC 9457 problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": _REFERENCE.format(model="Problem")}}}
    return {status: {"description": BY_STATUS[status].title, "content": content} for status in statuses}


def infer_problems(*statuses: int) -> dict[int | str, Entry]:
    """The same for the Open Inference Protocol, with its own form of errors."""
    return {status: {"description": BY_STATUS[status].title, "model": infer_schemas.InferError} for status in statuses}


def json_body(model: type[BaseModel]) -> Entry:
    """The `openapi_extra` of an operation that reads a JSON body itself, in order to limit its size before parsing."""
    assert model in _REQUEST_MODELS
    schema = {"$ref": _REFERENCE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {JSON: {"schema": schema}}}}


def upload(*, rates: bool) -> Entry:
    """The `openapi_extra` of an operation that takes uploads; `rates`: it has the parameters alpha and fdr too."""
    files = {"type": "array", "minItems": 1, "items": BINARY}
    form = {"type": "object", "required": ["file"], "properties": {"file": files}}
    encoding = {"file": {"contentType": ", ".join(sorted(IMAGE_TYPES))}}
    content: Entry = {FORM: {"schema": form, "encoding": encoding}}
    content |= {media: {"schema": BINARY} for media in (*sorted(IMAGE_TYPES), NPY)}
    alpha = _query("alpha", "False-alarm rate; default: the model's own.", _RATE)
    fdr = _query("fdr", "Instead of alpha: the false discovery rate over this request (Benjamini-Hochberg).", _RATE)
    text = "auto only centres a 28x28 grey image and prepares others as the model's card says; none only resizes."
    preprocess = _query("preprocess", text, {"type": "string", "enum": list(get_args(Preprocess)), "default": "auto"})
    parameters = [alpha, fdr, preprocess] if rates else [preprocess]
    parameters.append(_query("model", _MODEL, {"type": "string"}))
    if rates:
        parameters.append(WATCH)
    return {"parameters": parameters, "requestBody": {"required": True, "content": content}}


def add_openapi(app: FastAPI, *, key_optional: bool) -> None:
    """Serve the completed document at /openapi.json; `key_optional`: the server has no keys and accepts any.

    Call this after all routes have been added. FastAPI's own route renders the document anew for each request, in 10 ms.
    """
    app.openapi = partial(_complete, app, app.openapi, key_optional)  # type: ignore[method-assign]  # FastAPI's documented way

    documents: dict[str, bytes] = {}  # by root path, of which there is one
    rendering = asyncio.Lock()

    def render(root_path: str) -> bytes:
        servers = {"servers": [{"url": root_path}]} if root_path else {}
        return bytes(JSONResponse({**app.openapi(), **servers}).body)

    async def serve(request: Request) -> Response:
        root_path = request.scope.get("root_path", "")
        async with rendering:
            if root_path not in documents:  # on a thread, because the first time takes 100 ms
                documents[root_path] = await asyncio.to_thread(render, root_path)
        return Response(documents[root_path], media_type=JSON)

    app.add_route("/openapi.json", serve, include_in_schema=False)


def _complete(app: FastAPI, generate: Callable[[], Entry], key_optional: bool) -> Entry:
    """FastAPI's document with the models of json_body() and without the 422 that FastAPI adds to every parameter."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document: Entry = generate()
    components = document["components"]["schemas"]
    _, definitions = models_json_schema([(model, "validation") for model in _REQUEST_MODELS], ref_template=_REFERENCE)
    components |= jsonable_encoder(definitions["$defs"], exclude_none=True)  # as FastAPI does: no `default: null`
    for item in document["paths"].values():
        for operation in item.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):  # text parameters accept every value
                del operation["responses"]["422"]
            if key_optional and "security" in operation:
                operation["security"].insert(0, {})
    del components["HTTPValidationError"], components["ValidationError"]
    return document


def _query(name: str, description: str, schema: Entry) -> Entry:
    return {"name": name, "in": "query", "description": description, "schema": schema}


WATCH = _query(
    "watch",
    "0: score the images, but leave them out of verdict metrics and drift, as for a canary or a demonstration.",
    {"type": "string", "enum": ["0", "1"], "default": "1"},
)
