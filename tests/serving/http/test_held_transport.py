import asyncio

import pytest

from app.serving.http.held_transport import HeldTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n"


class RecordedTransport(asyncio.Transport):
    """Records what is written, and whether it was closed."""

    def __init__(self):
        super().__init__()
        self.written, self.closed = [], False

    def write(self, data):
        self.written.append(data)

    def close(self):
        self.closed = True


@pytest.fixture
def recorded():
    return RecordedTransport()


@pytest.fixture
def held(recorded):
    return HeldTransport(recorded)


def test_a_head_is_sent_together_with_its_body(recorded, held):
    held.write(HEAD)
    assert recorded.written == []
    held.write(b"body")
    held.write(b"more")
    assert recorded.written == [HEAD + b"body", b"more"]


def test_each_response_has_its_own_head(recorded, held):
    for _ in range(2):
        held.write(HEAD)
        held.write(b"body")
    assert recorded.written == [HEAD + b"body"] * 2


def test_the_head_of_a_response_without_a_body_is_sent(recorded, held):
    held.write(HEAD)
    held.flush()
    held.flush()
    assert recorded.written == [HEAD]


def test_a_head_is_sent_before_the_connection_closes(recorded, held):
    held.write(HEAD)
    held.close()
    assert recorded.written == [HEAD]
    assert recorded.closed


@pytest.mark.parametrize("data", [b"HTTP/1.1 100 Continue\r\n\r\n", HEAD + b"body", b"body\r\n\r\n"])
def test_everything_else_is_sent_at_once(recorded, held, data):
    held.write(data)
    assert recorded.written == [data]
