"""Registers every endpoint with the application."""

from fastapi import Depends, FastAPI

from app.serving.api.health import HealthEndpoints
from app.serving.api.model_info import ModelInfoEndpoints
from app.serving.api.open_inference import OpenInference
from app.serving.api.openapi import API_KEY, BINARY, add_openapi, problems, upload
from app.serving.api.predict import SPECS, Endpoints
from app.serving.api.query import refuse_unknown_parameters


def add_routes(
    app: FastAPI,
    endpoints: Endpoints,
    model_info: ModelInfoEndpoints,
    health: HealthEndpoints,
    open_inference: OpenInference,
    *,
    key_optional: bool,
) -> None:
    """Register all endpoints, those for uploads too: the middleware calls them directly, but they work without it."""
    for path, endpoint in endpoints.by_path.items():
        spec = SPECS[path]
        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            operation_id=path.removeprefix("/"),
            tags=["detection"],
            dependencies=API_KEY,
            response_model=spec.response_model,
            responses={
                200: {"content": {media: {"schema": BINARY} for media in spec.offers[1:]}},
                **problems(400, 401, 404, 408, 413, 415, 422, 503, 504),
            },
            openapi_extra=upload(rates=spec.outputs.verdicts),
        )
    app.include_router(model_info.router, dependencies=[Depends(refuse_unknown_parameters)], responses=problems(422))
    for router in (health.router, open_inference.router):
        app.include_router(router)
    add_openapi(app, key_optional=key_optional)
