"""Requests whose work is refused: their bodies are not received and parsed first."""

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import Request

from app.serving.api.model_info import ModelInfoEndpoints
from app.serving.api.open_inference import OpenInference
from app.serving.engine.admission import Overloaded
from app.serving.settings import Settings


class FullStage:
    """A thread that accepts no more work."""

    def check(self):
        raise Overloaded(1.0)


async def unexpected_receive():
    raise AssertionError("the body was received")


def request(*headers):
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": list(headers)}
    return Request(scope, unexpected_receive)


@pytest.fixture
def models():
    """One model, of which only the card and the dimensions are asked for."""
    bundle = SimpleNamespace(card=SimpleNamespace(name="mnist", version=1))
    inference = SimpleNamespace(detector=SimpleNamespace(bundle=bundle, latent_dim=2))
    return SimpleNamespace(find=lambda name: SimpleNamespace(inference=inference))


def test_points_are_not_parsed_where_their_pictures_are_refused(models):
    endpoints = ModelInfoEndpoints(models, FullStage(), Settings())
    with pytest.raises(Overloaded):
        asyncio.run(endpoints.decode(request((b"content-length", b"100"))))


def test_a_large_tensor_is_not_received_where_it_is_refused(models):
    stages = SimpleNamespace(pictures=FullStage())
    draining = SimpleNamespace(on=False)
    endpoints = OpenInference(models, None, None, stages, draining, None, Settings())
    with pytest.raises(Overloaded):
        asyncio.run(endpoints.model_infer("mnist", request((b"content-length", b"1000000"))))
