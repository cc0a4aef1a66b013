"""The server behind Ray Serve (extra `ray`): replicas on a cluster, as many as the requests in progress need.

    serve run app.scaling.ray_serve:application max_replicas=8

Each replica runs the application of `uvicorn app.main:app` in a process of its own, with the ODDIGIT_* variables of its
environment. Ray's HTTP proxy stands in the place of the `serve` command: it accepts the connections, and sends a request to
another replica where one does not accept it. Of a replica that dies, the requests in progress are answered with 500.
"""

from typing import Any

from pydantic import BaseModel, Field

_MAX_QUEUED_REQUESTS = 512  # of one proxy; more are refused with 503


class Replicas(BaseModel):
    """How many replicas there are, and when another one starts. The arguments of `application`."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(8, ge=1)
    target_ongoing_requests: float = Field(16, gt=0)  # of one replica, on average; above it another one starts
    max_ongoing_requests: int = Field(64, ge=1)  # of one replica; as many are answered in one forward pass
    num_gpus: float = Field(0, ge=0)  # of one replica


def application(replicas: Replicas) -> Any:  # noqa: ANN401 - ray has no types
    """The application for `serve run`, a configuration file of Ray Serve, or `ray.serve.run`."""
    from ray import serve

    deployment = serve.deployment(
        name="Oddigit",
        ray_actor_options={"num_cpus": 1, "num_gpus": replicas.num_gpus},
        max_ongoing_requests=replicas.max_ongoing_requests,
        max_queued_requests=_MAX_QUEUED_REQUESTS,
        autoscaling_config=replicas.model_dump(include={"min_replicas", "max_replicas", "target_ongoing_requests"}),
    )
    return deployment(serve.ingress(_load_app)()).bind()


def _load_app() -> Any:  # noqa: ANN401
    """Called in each replica, whose environment holds the settings."""
    from app.main import app

    return app
