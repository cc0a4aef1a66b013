"""Errors as responses."""

import asyncio
from types import SimpleNamespace

from app.serving.errors import Unavailable
from app.serving.http import problem_responses
from app.serving.http.problem_responses import ProblemResponses

SCOPE = {"type": "http", "method": "GET", "path": "/latent", "state": {"request_id": "1"}}


def test_a_response_that_finds_no_memory_is_counted_once(monkeypatch):
    """The framework reports the error of `send`, and raises it again; the middleware answers then."""
    counted = []
    monkeypatch.setattr(problem_responses, "record_rejection", counted.append)
    responses = ProblemResponses(5000)
    error = RuntimeError("Caught handled exception, but response already started.")
    error.__cause__ = Unavailable("Too many large responses are being sent.")
    assert asyncio.run(responses._handle(SimpleNamespace(scope=SCOPE), error)).status_code == 503
    assert counted == []
    assert responses(SCOPE, error).status_code == 503
    assert counted == ["unavailable"]


def test_a_deadline_that_passed_names_its_length():
    """Wherever the work was when it passed."""
    response = ProblemResponses(250)(SCOPE, TimeoutError())
    assert response.status_code == 504 and b"within 250 ms" in response.body
