"""Goal: the relay listens where the user said, for IPv4 and IPv6, or says who is in the way."""

from __future__ import annotations

import os
import socket

import pytest

from app.errors import ExitCode, WorkerError
from app.p2p.listening import holder_of, listen, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.0.0.0:25052", ("0.0.0.0", 25052)),
        ("[::]:0", ("::", 0)),
        ("[fe80::1%eth0]:5", ("fe80::1%eth0", 5)),
        (":7", ("", 7)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text, "--listen") == expected


@pytest.mark.parametrize("text", ["", "25052", "::1:5", "1.2.3.4:", "1.2.3.4:http", "1.2.3.4:65536", "1.2.3.4:²"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(WorkerError, match="--listen wants ADDR:PORT") as caught:
        parse_address(text, "--listen")
    assert caught.value.code == ExitCode.USAGE


def test_one_socket_for_both_families() -> None:
    with listen("::", 0) as listener:
        port = listener.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=5):
                listener.accept()[0].close()


def test_who_has_the_port_is_named() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert holder_of(port).endswith(f"(pid {os.getpid()})")
        with pytest.raises(WorkerError, match="address already in use by") as caught:
            listen("127.0.0.1", port)
        assert "--listen" in caught.value.hint
    assert holder_of(port) == ""


def test_an_address_of_nobody() -> None:
    with pytest.raises(WorkerError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen("192.0.2.1", 0)
