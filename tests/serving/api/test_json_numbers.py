import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.serving.api import json_numbers
from app.serving.api.json_numbers import cut_data, parse_in_pieces


@pytest.fixture(autouse=True, scope="module")
def tiny_pieces():
    """Pieces of a few elements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_numbers, "PIECE_BYTES", 5)
        yield


def joined(array):
    return [element for _, piece in parse_in_pieces(array) for element in piece]


numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
rows = st.lists(numbers, min_size=1)
arrays = st.lists(numbers) | st.lists(rows) | st.lists(st.lists(rows, min_size=1))


@given(arrays, st.sampled_from([None, 0, 1, 2]))
def test_pieces_hold_the_elements_of_the_array(array, indent):
    """Flat or nested, with white space or without: the same elements as the whole parsed at once."""
    assert joined(json.dumps(array, indent=indent).encode()) == array


@given(st.text(alphabet="[],1 -.e", max_size=40))
def test_what_is_no_json_is_no_array(text):
    """Whatever a piece may hold, nothing is accepted that is not JSON."""
    array = f"[{text}]".encode()
    try:
        found = joined(array)
    except ValueError:
        return
    assert found == json.loads(array)


@given(arrays, st.dictionaries(st.text(), st.text() | numbers | st.booleans() | st.none()))
def test_the_array_is_cut_out_of_the_text(array, others):
    """Whatever stands around it; what remains is JSON with another array in its place."""
    body = json.dumps({**others, "data": array, **others}).encode() if "data" not in others else json.dumps(others).encode()
    text, cut = cut_data(body)
    if "data" in others:
        assert (text, cut) == (body, None)
    else:
        assert json.loads(cut) == array
        assert json.loads(text) == {**others, "data": [0]}


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": [1], "x": {"data": [2]}}',
        b'{"data": "[1]"}',
        b'{"x": "\\"data\\": [1]"}',
        b'{"x\\"data": [1]}',
        b'{"data": ["AAAA"]}',
        b'{"data": [{"a": [1]}]}',
        b'{"data": [',
        b'"data"' * 100 + b'{"data": [1]}',
        b"",
    ],
)
def test_nothing_is_cut_where_there_is_no_single_array_of_numbers(body):
    """Two arrays, texts, objects, and what ends too early."""
    assert cut_data(body) == (body, None)


@pytest.mark.parametrize("array", [b"[[" + b"1," * 200_000 + b"1]]", b"[" + b"1" * 400_000 + b"]"], ids=["row", "number"])
def test_an_element_that_is_no_image_is_not_parsed(array):
    """One call would parse it, and keep the interpreter's lock for its whole length."""
    with pytest.raises(ValueError, match="too long"):
        joined(array)
