from contextlib import suppress

import pytest
from hostile import file_part, form
from hypothesis import given, settings
from hypothesis import strategies as st

from app.serving.errors import InvalidBody, TooLarge
from app.serving.http import forms
from app.serving.http.forms import Part, media_type, parse_form, printable_name

TYPE = "multipart/form-data; boundary=line"

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters='"\\;%'), min_size=1, max_size=40
)


@settings(max_examples=40)
@given(st.lists(st.tuples(NAMES, st.binary(max_size=200).filter(lambda data: b"--line" not in data)), min_size=1, max_size=6))
def test_a_form_gives_its_files_back_in_order(files):
    """Names, types and bytes come out as they went in, whatever they hold."""
    body = form(*[(file_part("x", data)[0].replace(b'"x"', b'"' + name.encode() + b'"'), data) for name, data in files])
    expected = [Part(name, "image/png", data) for name, data in files]
    assert parse_form(body, TYPE, max_parts=6) == expected
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "_PIECE_BYTES", 7)
        assert parse_form(memoryview(body), TYPE, max_parts=6) == expected


@given(st.binary(max_size=300), st.integers(0, 300))
def test_any_bytes_are_a_form_or_a_bad_body(noise, cut):
    """Noise, and forms with noise in them, end in parts or in a InvalidBody, never in another error."""
    whole = form(file_part("a.png", b"data"))
    for body in (noise, whole[:cut] + noise + whole[cut:], whole[:cut]):
        with suppress(InvalidBody, TooLarge):
            assert all(isinstance(part, Part) for part in parse_form(body, TYPE, max_parts=3))


@given(st.text(st.characters(codec="latin-1"), max_size=60))
def test_any_content_type_is_read_or_refused(text):
    """The content type is the client's too: any of them gives parts or a InvalidBody."""
    with suppress(InvalidBody):
        parse_form(form(file_part("a.png", b"data")), "multipart/form-data" + text, max_parts=3)


def test_a_long_content_type_is_refused():
    """Its parser takes 80 ms for 32 KiB."""
    with pytest.raises(InvalidBody, match="longer than"):
        parse_form(form(file_part("a.png", b"data")), TYPE + ";" * 2000, max_parts=3)


def test_a_name_that_is_not_ascii_comes_in_either_form():
    """As UTF-8, or as RFC 8187 writes it, which precedes the other."""
    part = b'Content-Disposition: form-data; name="file"; filename="a.png"; filename*=UTF-8\'en\'%C3%A4%201.png', b"data"
    (found,) = parse_form(form(part), TYPE, max_parts=1)
    assert found.name == "ä 1.png"
    part = b'Content-Disposition: form-data; name="file"; filename="x; filename*=utf-8\'\'y.png"', b"data"
    (found,) = parse_form(form(part), TYPE, max_parts=1)
    assert found.name == "x; filename*=utf-8''y.png"  # a name that looks like the other form


def test_a_part_has_one_set_of_headers():
    """What one part's headers say is forgotten when the next begins."""
    other = (b'Content-Disposition: form-data; name="file"', b"second")
    first, second = parse_form(form(file_part("first.png", b"first"), other), TYPE, max_parts=2)
    assert (first.name, first.content_type) == ("first.png", "image/png")
    assert (second.name, second.content_type) == ("file 2", "")


def test_parts_that_are_no_files_are_left_out_but_counted():
    """Other fields do not disturb, and do not lift the limit."""
    field = (b'Content-Disposition: form-data; name="comment"', b"hello")
    body = form(field, file_part("a.png", b"data"), field)
    assert [part.name for part in parse_form(body, TYPE, max_parts=3)] == ["a.png"]
    with pytest.raises(TooLarge, match="more than 2 parts"):
        parse_form(body, TYPE, max_parts=2)


@pytest.mark.parametrize("body", [b"", b"--line--", b"--line--\r\n", b"\r\n", form((b"X: y", b"data"))])
def test_a_form_without_files_says_how_to_send_one(body):
    """The refusal shows the command."""
    with pytest.raises(InvalidBody):
        parse_form(body, TYPE, max_parts=3)


@pytest.mark.parametrize("names", [["a.png"], ["a.png", "b.png"]])
@pytest.mark.parametrize("lost", [1, 4, 6, 20, 60])
def test_a_form_that_ends_too_early_is_refused(names, lost):
    """Without the error, the response would leave out the last file."""
    body = form(*(file_part(name, b"data" * 20) for name in names)).removesuffix(b"\r\n")
    assert len(parse_form(body, TYPE, max_parts=2)) == len(names)
    with pytest.raises(InvalidBody, match="ends before its last boundary"):
        parse_form(body[:-lost], TYPE, max_parts=2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [("Image/PNG; q=1", "image/png"), ("  image/png  ", "image/png"), ("", ""), (";", ""), ("image/png;;", "image/png")],
)
def test_a_media_type_is_read_without_its_parameters(text, kind):
    """Case, spaces and parameters do not matter."""
    assert media_type(text) == kind


@given(st.text())
def test_a_readable_name_is_printable_and_short(name):
    """Control characters, line ends and overlength never reach an answer or a log."""
    shown = printable_name(name)
    assert shown.isprintable()
    assert len(shown) <= 255
    assert printable_name(shown) == shown
