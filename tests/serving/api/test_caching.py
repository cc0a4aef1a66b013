import pytest
from starlette.requests import Request

from app.serving.api.caching import accepts_gzip, cacheable, not_modified


def request(**headers):
    """A request with these headers; underscores stand for dashes."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw})


@pytest.mark.parametrize(
    ("header", "accepted"),
    [("gzip", True), ("br, gzip;q=0.5", True), ("GZIP", True), ("", False), ("br", False), ("gzip;q=0", False),
     ("gzip; q=0.0", False), ("gzip;\tq=0", False), ("gzipped", False)],
)  # fmt: skip
def test_gzip_is_sent_to_clients_that_accept_it(header, accepted):
    """As RFC 9110 has it: a weight of 0 refuses."""
    assert accepts_gzip(request(accept_encoding=header)) == accepted
    response = cacheable(request(accept_encoding=header), b"body" * 9, "text/plain", '"tag"')
    assert ("content-encoding" in response.headers) == accepted
    assert response.headers["vary"] == "Accept-Encoding"


@pytest.mark.parametrize(
    ("known", "status"), [('"tag"', 304), ('"old", W/"tag"', 304), ("*", 304), ('"old"', None), ("", None)]
)
def test_a_known_version_is_not_sent_again(known, status):
    """If-None-Match may name several versions, weak ones too."""
    response = not_modified(request(if_none_match=known), '"tag"', {"X-Policy": "strict"})
    assert (response and response.status_code) == status
    if response is not None:
        sent = [response.headers[name] for name in ("etag", "x-policy", "vary")]
        assert sent == ['"tag"', "strict", "Accept-Encoding"]  # as with the content


def test_a_header_may_come_in_several_lines():
    """They are one list, as RFC 9110 has it."""
    raw = [
        (b"if-none-match", b'"old"'),
        (b"if-none-match", b'"tag"'),
        (b"accept-encoding", b"br"),
        (b"accept-encoding", b"gzip"),
    ]
    repeated = Request({"type": "http", "headers": raw})
    assert not_modified(repeated, '"tag"') is not None
    assert accepts_gzip(repeated)
