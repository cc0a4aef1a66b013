"""The part of the OpenAPI document that the framework cannot read off the endpoints: bodies, parameters and errors."""

from typing import Any, get_args

from fastapi import FastAPI

from app.detection.imaging.decode import Preprocess
from app.serving import schemas
from app.serving.api.model_info import About
from app.serving.api.open_inference import OpenInference
from app.serving.api.predict import Endpoints
from app.serving.api.query import JSON, LEAST_RATE, NPY, PNG
from app.serving.api.uploads import FORM, IMAGE_TYPES
from app.serving.errors import BY_STATUS, MEDIA_TYPE
from app.serving.http.middleware import Endpoint

Entry = dict[str, Any]

_BINARY: Entry = {"type": "string", "format": "binary"}
_ALPHA: Entry = {
    "name": "alpha",
    "in": "query",
    "description": "False-alarm rate to judge by; unset, the model's own.",
    "schema": {"type": "number", "minimum": LEAST_RATE, "exclusiveMaximum": 1},
}
_FDR: Entry = {
    "name": "fdr",
    "in": "query",
    "description": "Instead of alpha: the share of false alarms among all alarms of this request (Benjamini-Hochberg).",
    "schema": {"type": "number", "minimum": LEAST_RATE, "exclusiveMaximum": 1},
}
_PREPROCESS: Entry = {
    "name": "preprocess",
    "in": "query",
    "description": "auto leaves a 28x28 grey image as it is and prepares others as digits; none only resizes.",
    "schema": {"type": "string", "enum": list(get_args(Preprocess)), "default": "auto"},
}
_UPLOAD: Entry = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "minItems": 1, "items": _BINARY}},
            },
            "encoding": {"file": {"contentType": ", ".join(sorted(IMAGE_TYPES))}},
        },
        **{kind: {"schema": _BINARY} for kind in sorted(IMAGE_TYPES)},
        NPY: {"schema": _BINARY},
    },
}
_UPLOAD_ERRORS = (400, 401, 413, 415, 422, 503, 504)


def add_routes(app: FastAPI, endpoints: Endpoints, about: About, open_inference: OpenInference) -> None:
    """Register every endpoint with its full description."""
    _add_question(app, "/score", endpoints.score, schemas.ScoreAnswer, (NPY,))
    _add_question(app, "/embed", endpoints.embed, schemas.EmbedAnswer, (NPY,))
    _add_question(app, "/reconstruct", endpoints.reconstruct, schemas.ReconstructAnswer, (PNG, NPY))
    _add(app, "/livez", about.livez, schemas.Liveness, "probes", ())
    _add(app, "/readyz", about.readyz, schemas.Readiness, "probes", (503,))
    _add(app, "/model", about.model, schemas.ModelCard, "model", (401, 503))
    _add(app, "/latent", about.latent, schemas.Latent, "model", (401, 404, 503))
    _add(app, "/drift", about.drift, schemas.Drift, "monitoring", (401, 503))
    app.add_api_route(
        "/metrics",
        about.metrics,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(401, 503)},
        response_model=None,
        tags=["monitoring"],
    )
    app.add_api_route(
        "/model/report/{picture}",
        about.report,
        responses={200: {"content": {PNG: {"schema": _BINARY}}}, **errors(401, 404, 503)},
        response_model=None,
        tags=["model"],
        openapi_extra={"parameters": [_path_parameter("picture")]},
    )
    app.add_api_route(
        "/problems/{type}",
        about.problem,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **errors(404)},
        response_model=None,
        tags=["probes"],
        openapi_extra={"parameters": [_path_parameter("type")]},
    )
    app.add_api_route(
        "/decode",
        about.decode,
        methods=["POST"],
        response_model=schemas.DecodeAnswer,
        responses=errors(400, 401, 413, 422, 503, 504),
        tags=["questions"],
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {JSON: {"schema": _points()}},
            }
        },
    )

    _add_open_inference(app, open_inference)


def _add_open_inference(app: FastAPI, v2: OpenInference) -> None:
    def add(path: str, endpoint: Endpoint, answer: type, *statuses: int, **options: Any) -> None:  # noqa: ANN401
        app.add_api_route(
            f"/v2{path}", endpoint, response_model=answer, responses=_v2_errors(*statuses), tags=["open inference"], **options
        )

    add("", v2.server, schemas.InferServer, 401, 503)
    add("/health/live", v2.live, schemas.InferLive)
    add("/health/ready", v2.ready, schemas.InferReady, 503)
    for path in ("/models/{model}", "/models/{model}/versions/{version}"):
        named = [_path_parameter(name) for name in ("model", "version") if f"{{{name}}}" in path]
        add(path, v2.model, schemas.InferModel, 401, 404, 503, openapi_extra={"parameters": named})
        add(f"{path}/ready", v2.model_ready, schemas.InferModelReady, 401, 404, 503, openapi_extra={"parameters": named})
        content = {JSON: {"schema": _inlined(schemas.InferRequest.model_json_schema())}}
        asked = {"parameters": named, "requestBody": {"required": True, "content": content}}
        statuses = (400, 401, 404, 413, 422, 503, 504)
        add(f"{path}/infer", v2.infer, schemas.InferAnswer, *statuses, methods=["POST"], openapi_extra=asked)


def _inlined(schema: Entry) -> Entry:
    """A model's schema with its parts in their places: their own references would not resolve in the document."""
    parts = schema.pop("$defs", {})

    def inline(node: Any) -> Any:  # noqa: ANN401 - any JSON
        if isinstance(node, dict):
            name = str(node.get("$ref", "")).rpartition("/")[2]
            return inline(parts[name]) if name else {key: inline(value) for key, value in node.items()}
        return [inline(value) for value in node] if isinstance(node, list) else node

    inlined: Entry = inline(schema)
    return inlined


def _v2_errors(*statuses: int) -> dict[int | str, Entry]:
    return {status: {"description": BY_STATUS[status].title, "model": schemas.InferError} for status in statuses}


def errors(*statuses: int) -> dict[int | str, Entry]:
    """The `responses` of an endpoint that can fail with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {status: {"description": BY_STATUS[status].title, "content": content} for status in statuses}


def _points() -> Entry:
    """The body of /decode: for the pages and clients of a plane, each point has two coordinates."""
    schema = schemas.DecodeRequest.model_json_schema()
    schema["properties"]["embedding"]["items"] |= {"minItems": 2, "maxItems": 2}
    return schema


def _add_question(app: FastAPI, path: str, endpoint: Endpoint, answer: type, others: tuple[str, ...]) -> None:
    parameters = [_ALPHA, _FDR, _PREPROCESS] if path == "/score" else [_PREPROCESS]
    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        response_model=answer,
        responses={200: {"content": {media: {"schema": _BINARY} for media in others}}, **errors(*_UPLOAD_ERRORS)},
        tags=["questions"],
        openapi_extra={"parameters": parameters, "requestBody": _UPLOAD},
    )


def _add(app: FastAPI, path: str, endpoint: Endpoint, answer: type, tag: str, statuses: tuple[int, ...]) -> None:
    app.add_api_route(path, endpoint, response_model=answer, responses=errors(*statuses), tags=[tag])


def _path_parameter(name: str) -> Entry:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
