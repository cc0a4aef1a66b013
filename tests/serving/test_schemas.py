import pytest
from hostile import FORM, file_part, form
from pydantic import ValidationError
from strokes import npy, png, stroke_images

from app.serving import schemas

ANSWERS = {
    "/score": schemas.ScoreResponse,
    "/embed": schemas.EmbedResponse,
    "/reconstruct": schemas.ReconstructResponse,
    "/inspect": schemas.InspectResponse,
}
IMAGES = stroke_images(3, seed=8)
BODIES = {
    "image/png": png(IMAGES[0]),
    "application/x-npy": npy(IMAGES),
    FORM: form(file_part("a.png", png(IMAGES[0])), file_part("b.png", b"broken"), file_part("c.png", png(IMAGES[1]))),
}


@pytest.mark.parametrize("path", ANSWERS)
@pytest.mark.parametrize("kind", BODIES)
def test_answers_are_those_that_the_schemas_describe(client, path, kind):
    """Field for field, nothing more and nothing less, failed images among them."""
    response = client.post(path, content=BODIES[kind], headers={"content-type": kind})
    assert response.status_code == 200
    answer = ANSWERS[path].model_validate(response.json())
    assert len(answer.results) == (1 if kind == "image/png" else 3)
    assert isinstance(answer.results[-1], schemas.Score | schemas.Embedding | schemas.Reconstruction)
    assert answer.model_dump(mode="json", exclude_unset=True) == response.json()


@pytest.mark.parametrize(
    ("path", "schema"),
    [("/livez", schemas.Liveness), ("/readyz", schemas.Readiness), ("/model", schemas.ModelCard)],
)
def test_what_the_server_tells_of_itself_fits_its_schemas(client, path, schema):
    """Probes and card are as described."""
    schema.model_validate(client.get(path).json())


def test_a_score_that_is_not_finite_is_no_answer():
    """The contract has no NaN and no Infinity, and p-values above 0."""
    good = {"name": "a", "score": 1.0, "p_value": 0.5, "is_anomaly": False, "reconstruction_error": 0.1}
    good |= {"preprocess": [], "warnings": []}
    schemas.Score.model_validate(good)
    for wrong in ({"score": float("nan")}, {"score": float("inf")}, {"p_value": 0.0}, {"p_value": 1.1}, {"colour": "red"}):
        with pytest.raises(ValidationError):
            schemas.Score.model_validate(good | wrong)
