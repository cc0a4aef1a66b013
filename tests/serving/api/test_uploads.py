import numpy as np
import pytest
from hostile import FORM, NPY, file_part, form, huge_png
from PIL import Image
from strokes import encoded, npy, png, stroke_images

from app.serving import schemas
from app.serving.api.uploads import combine_problems
from app.serving.errors import InvalidBody, TooLarge

IMAGES = stroke_images(12, seed=10)


def results(client, body, kind, path="/score", query=""):
    response = client.post(path + query, content=body, headers={"content-type": kind})
    assert response.status_code == 200, response.text
    return response.json()["results"]


def scores(client, body, kind, query=""):
    return [result["score"] for result in results(client, body, kind, query=query)]


def test_the_three_forms_of_upload_agree(client):
    """An array, a form of files and single bodies of the same images: the same scores in the same order."""
    bulk = scores(client, npy(IMAGES), NPY)
    files = form(*[file_part(f"{index}.png", png(image)) for index, image in enumerate(IMAGES)])
    singles = [scores(client, png(image), "image/png")[0] for image in IMAGES]
    np.testing.assert_allclose(scores(client, files, FORM), bulk, rtol=1e-5)
    np.testing.assert_allclose(singles, bulk, rtol=1e-5)


def test_one_image_may_be_an_array_of_two_axes(client):
    """[28, 28] is [1, 28, 28]; column order is no other image."""
    whole = scores(client, npy(IMAGES), NPY)
    assert scores(client, npy(IMAGES[0]), NPY) == pytest.approx(whole[:1], rel=1e-5)
    assert scores(client, npy(np.asfortranarray(IMAGES)), NPY) == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
def test_large_arrays_are_answered_as_small_ones(client, aligned):
    """An array that is received in many parts is centred where it lies; scores, steps and warnings are those of a small one."""
    bright = np.pad(255 - IMAGES[0][2:, 3:], ((0, 2), (0, 3)), constant_values=255)  # off the middle, on white
    some = IMAGES if aligned else np.concatenate([np.roll(IMAGES, (2, -3), (1, 2)), IMAGES, bright[None]])
    expected = results(client, npy(some), NPY)
    found = results(client, npy(np.tile(some, (200, 1, 1))), NPY)
    assert aligned or any("looks_inverted" in result["warnings"][0] for result in expected if result["warnings"])
    assert len(found) == 200 * len(some)
    for start in (0, 100 * len(some), 199 * len(some)):
        for one, other in zip(found[start:], expected, strict=False):
            assert one["score"] == pytest.approx(other["score"], rel=1e-5)
            assert (one["preprocess"], one["warnings"]) == (other["preprocess"], other["warnings"])


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "WEBP", "PNG"])
def test_lossless_formats_agree(client, kind):
    """The same grey pixels in any format that keeps them score the same; the declared type need not be the true one."""
    options = {"lossless": True} if kind == "WEBP" else {}
    body = encoded(Image.fromarray(IMAGES[0]), kind, **options)
    expected = scores(client, png(IMAGES[0]), "image/png")
    assert scores(client, body, f"image/{kind.lower()}") == pytest.approx(expected, rel=1e-5)
    assert scores(client, body, "image/jpeg") == pytest.approx(expected, rel=1e-5)


def test_names_are_those_of_the_upload(client):
    """File names in a form, indices in an array; whatever a name holds, it comes back fit to print."""
    names = ["ziffer-ü.png", "七.png", "a b.png", "../../etc/passwd", "x" * 500, "<b>.png", ""]
    head = 'Content-Disposition: form-data; name="file"; filename="{}"'
    parts = [(head.format(name).encode(), png(IMAGES[0])) for name in names]
    found = [result["name"] for result in results(client, form(*parts), FORM)]
    assert found[:4] == names[:4]
    assert found[4] == "x" * 255
    assert found[5:] == ["<b>.png", "file 7"]
    assert [result["name"] for result in results(client, npy(IMAGES[:3]), NPY)] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.png", b"a\x00b.png", b"a\x1b[31m.png", b"\xe2\x80\xae.png", b'a\\"b.png', b"a;b.png"]
)
def test_a_name_that_is_no_text_is_made_readable(client, name):
    """Bytes that are no UTF-8, control characters and changes of direction never come back."""
    part = (b'Content-Disposition: form-data; name="file"; filename="' + name + b'"', png(IMAGES[0]))
    (result,) = results(client, form(part), FORM)
    assert result["name"].isprintable()
    assert result["name"]


def test_an_image_that_fails_among_others_fails_alone(client):
    """Its entry stands in its place and holds a problem; the others score as they do without it."""
    files = [
        file_part("first.png", png(IMAGES[0])),
        file_part("broken.png", png(IMAGES[1])[:90]),
        file_part("second.png", png(IMAGES[1])),
        file_part("vector.svg", b"<svg/>", "image/svg+xml"),
        file_part("huge.png", huge_png(9000, 9000)),
        file_part("empty.png", b""),
        file_part("third.png", png(IMAGES[2])),
    ]
    for path in ("/score", "/embed", "/reconstruct"):
        found = results(client, form(*files), FORM, path)
        assert [result["name"] for result in found] == [
            "first.png", "broken.png", "second.png", "vector.svg", "huge.png", "empty.png", "third.png"
        ]  # fmt: skip
        failed = {r["name"]: schemas.Problem.model_validate(r["error"]) for r in found if "error" in r}
        assert {name: problem.status for name, problem in failed.items()} == {
            "broken.png": 400, "vector.svg": 415, "huge.png": 413, "empty.png": 400
        }  # fmt: skip
        assert all(name in problem.detail for name, problem in failed.items())
        assert all(problem.instance == path for problem in failed.values())
    kept = [r["score"] for r in results(client, form(*files), FORM) if "score" in r]
    np.testing.assert_allclose(kept, scores(client, npy(IMAGES[:3]), NPY), rtol=1e-5)


@pytest.mark.parametrize("accept", ["application/x-npy", "image/png"])
def test_an_answer_with_no_room_for_errors_refuses_the_whole(client, accept):
    """A plain array or picture cannot say which image failed, so none is given."""
    body = form(file_part("a.png", png(IMAGES[0])), file_part("b.png", b"broken"))
    response = client.post("/reconstruct", content=body, headers={"content-type": FORM, "accept": accept})
    assert response.status_code == 400
    assert "b.png" in response.json()["detail"]


def test_sixty_four_files_are_welcome(client):
    """The limit on files is reached, not passed."""
    body = form(*[file_part(f"{index}", png(IMAGES[index % 12])) for index in range(64)])
    assert len(results(client, body, FORM)) == 64


def test_curls_and_browsers_forms_are_read(client, samples):
    """A form as an ordinary client writes it, its own boundary, types and other fields."""
    files = [("file", (path.name, path.read_bytes())) for path in sorted(samples.glob("*.*")) if path.suffix != ".py"]
    response = client.post("/score", files=files, data={"comment": "hello"})
    assert [result["name"] for result in response.json()["results"]] == [name for _, (name, _) in files]
    assert not any("error" in result for result in response.json()["results"])


@pytest.mark.parametrize("kind", ["IMAGE/PNG", "image/png; charset=binary", "image/png ; q=1", "image/png;"])
def test_a_content_type_is_read_generously(client, kind):
    """Case, spaces and parameters do not matter."""
    assert client.post("/score", content=png(IMAGES[0]), headers={"content-type": kind}).status_code == 200


def test_preparation_is_as_asked(client):
    """A 28x28 grey image is left alone by auto and none, and prepared by digit; a drawing on paper is prepared by auto."""
    own = png(IMAGES[0])
    page = png(255 - np.pad(IMAGES[0].repeat(4, 0).repeat(4, 1), 40))
    steps = {
        (label, preprocess): results(client, body, "image/png", query=f"?preprocess={preprocess}")[0]["preprocess"]
        for label, body in (("own", own), ("page", page))
        for preprocess in ("auto", "none", "digit")
    }
    assert steps["own", "none"] == []
    assert steps["own", "auto"] == ["centred"]  # the fixture's image lies off the middle
    assert steps["own", "digit"]
    assert "inverted" in steps["page", "auto"]
    assert steps["page", "auto"] == steps["page", "digit"]
    assert "inverted" not in steps["page", "none"]


def test_a_refusal_of_several_images_is_theirs_where_they_agree():
    """One problem is passed on; several alike keep their kind; several different ones make a bad body."""
    large, bad = TooLarge("a: too large"), InvalidBody("b: broken")
    assert combine_problems([large], 1) is large
    assert isinstance(combine_problems([large, large], 2), TooLarge)
    assert isinstance(combine_problems([large, bad], 2), InvalidBody)
    assert "None of the 2 images could be read" in combine_problems([large, bad], 2).detail
    assert "2 of the 5 images could not be read" in combine_problems([large, bad], 5).detail
