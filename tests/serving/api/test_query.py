import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serving.api.query import JSON, NPY, PNG, Options, choose, read_options
from app.serving.errors import OutOfRange, UnknownParameter

ALL = (JSON, PNG, NPY)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/json", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("application/*", JSON),
        ("application/x-npy", NPY),
        ("image/png;q=0.4, application/x-npy;q=0.8", NPY),
        ("image/png; q=0.4 , application/x-npy ; q=0.3", PNG),
        ("image/avif,image/webp,image/png,*/*;q=0.8", PNG),
        ("text/html,application/xhtml+xml,*/*;q=0.8", JSON),
        ("text/html", JSON),
        ("image/png;q=0", JSON),
        ("image/png;q=nonsense", JSON),
        ("application/json;q=0.1, */*", PNG),
        ("application/json;q=0, image/png;q=0.1", PNG),
        ("application/json;q=0, */*;q=0.5", PNG),
        ("image/*;q=0.2, image/png;q=0.9, application/json;q=0.5", PNG),
        ("image/*, image/png;q=0.1, application/json;q=0.5", JSON),
        ("application/x-npy;version=1", NPY),
        ("image/png;q=nan, application/json;q=0.1", JSON),
        (",,;;q=,", JSON),
    ],
)
def test_the_answer_is_what_the_client_prefers(accept, expected):
    """Weights and wildcards count as RFC 9110 has them, the most specific range first; JSON where nothing fits."""
    assert choose(accept, ALL) == expected


@given(st.text())
def test_any_accept_header_gets_an_offer(accept):
    """Whatever the header says, something is chosen."""
    assert choose(accept, ALL) in ALL
    assert choose(accept + ", image/png" * 100, ALL) == ALL[0]  # too long to be read


@given(st.permutations(["application/json;q=0.3", "image/png;q=0.6", "application/x-npy;q=0.9", "text/html"]))
def test_the_order_of_an_accept_header_does_not_matter(entries):
    """Weights alone decide."""
    assert choose(", ".join(entries), ALL) == NPY


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"", Options()),
        (b"alpha=0.05", Options(alpha=0.05)),
        (b"alpha=5e-2&preprocess=none", Options(alpha=0.05, preprocess="none")),
        (b"preprocess=digit", Options(preprocess="digit")),
        (b"preprocess=auto&&=&watch=1", Options()),
        (b"alpha=%30.5", Options(alpha=0.5)),
    ],
)
def test_options_are_read_from_the_query(query, expected):
    """Each parameter once, percent-encoded or not."""
    assert read_options(query) == expected


@pytest.mark.parametrize(
    "alpha", ["0", "1", "-0.1", "1.5", "nan", "NaN", "inf", "-inf", "", " ", "x", "1e-999", "0,5", "0.5%00"]
)
def test_an_alpha_out_of_range_is_refused_by_name(alpha):
    """The refusal says which parameter and what it takes."""
    with pytest.raises(OutOfRange, match="alpha"):
        read_options(f"alpha={alpha}".encode())


@pytest.mark.parametrize("preprocess", ["", "None", "none ", "digits", "auto%00", "%ff"])
def test_an_unknown_preprocess_is_refused_with_those_there_are(preprocess):
    """The refusal lists the choices."""
    with pytest.raises(OutOfRange, match="auto, none, digit"):
        read_options(f"preprocess={preprocess}".encode())


@pytest.mark.parametrize(
    ("query", "words"),
    [
        (b"alhpa=0.1", "did you mean alpha"),
        (b"preproces=none", "did you mean preprocess"),
        (b"Alpha=0.1", "did you mean alpha"),
        (b"colour=red", "there are: alpha, fdr, preprocess, model, watch"),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_nearest_one(query, words):
    """A misspelt parameter would otherwise be ignored in silence."""
    with pytest.raises(UnknownParameter, match=words):
        read_options(query)


@given(st.binary(max_size=200))
def test_any_query_gives_options_or_a_refusal(query):
    """Arbitrary bytes never raise anything but a problem, and an alpha that passes lies between 0 and 1."""
    for text in (query, b"alpha=" + query, b"preprocess=" + query):
        try:
            options = read_options(text)
        except (OutOfRange, UnknownParameter):
            continue
        assert options.alpha is None or 0 < options.alpha < 1


def test_a_query_of_many_parameters_is_refused_before_it_is_read():
    """Reading hundreds of them would cost as much as an image."""
    with pytest.raises(OutOfRange, match="more than 20 parameters"):
        read_options(b"alpha=0.1&" * 21)
    assert read_options(b"alpha=0.1&" * 19).alpha == 0.1
