import math
import socket
import sys

import pytest

from app.serving.http.sockets import set_write_timeout


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the timeout")
@pytest.mark.parametrize(("seconds", "milliseconds"), [(20, 20_000), (1e7, 2**31 - 1), (math.inf, 2**31 - 1), (1e-9, 1)])
def test_any_write_timeout_can_be_set(seconds, milliseconds):
    """The system takes 31 bits."""
    with socket.socket() as sock:
        set_write_timeout(sock, seconds)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == milliseconds
