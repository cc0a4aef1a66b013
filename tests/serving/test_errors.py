import json

import pytest

from app.detection.imaging.errors import ImageTooLarge, TooManyImages, UndecodableImage, UnsupportedImage
from app.serving import schemas
from app.serving.errors import BY_STATUS, PROBLEMS, BadRequest, InvalidBody, TooLarge, UnsupportedType, from_image_error

CONTRACT = {400, 401, 404, 405, 408, 413, 415, 422, 500, 503, 504}


def test_every_status_of_the_contract_has_an_error():
    """Types and titles distinguish the errors; some statuses have several of them."""
    assert set(BY_STATUS) == CONTRACT
    assert BY_STATUS[400] is BadRequest
    assert len(PROBLEMS) == len({p.type for p in PROBLEMS}) == len({p.title for p in PROBLEMS})
    assert all(problem.__doc__ for problem in PROBLEMS)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.type)
def test_a_problem_has_the_body_of_the_contract(problem):
    """Type, title, status, detail, instance and request id; nothing else, and all of it JSON."""
    body = problem("Say why.").body("/score", "abc")
    assert schemas.Problem.model_validate(json.loads(json.dumps(body)))
    assert (body["status"], body["detail"], body["instance"], body["request_id"]) == (
        problem.status,
        "Say why.",
        "/score",
        "abc",
    )
    assert body["type"] == f"/problems/{problem.type}"
    assert problem("Say why.").body("/\u00e9 1%?", "abc")["instance"] == "/%C3%A9%201%25%3F"  # a URI


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (UndecodableImage, InvalidBody),
        (UnsupportedImage, UnsupportedType),
        (ImageTooLarge, TooLarge),
        (TooManyImages, TooLarge),
    ],
)
def test_an_image_error_becomes_its_problem_with_the_files_name(error, problem):
    """The sentence is kept, with the name before it where there is one."""
    assert type(from_image_error(error("truncated PNG"))) is problem
    assert from_image_error(error("truncated PNG"), "a.png").detail == "a.png: truncated PNG"
    assert from_image_error(error("truncated PNG")).detail == "truncated PNG"
