"""Goal: the calls on the list are refused, the same numbers in another table too, and nothing else is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from app.p2p import privileges, seccomp
from app.p2p.libc import call
from tests.p2p.forked import forked

REFUSED = "Operation not permitted"


@pytest.fixture
def filtered() -> Callable[[Callable[[], object]], str]:
    """Runs something under the filter."""

    def run(body: Callable[[], object]) -> str:
        def shut_in() -> object:
            privileges.give_up()
            seccomp.restrict()
            return body()

        return forked(shut_in)

    if filtered_out := run(lambda: ""):
        pytest.skip(f"this machine allows no filter: {filtered_out}")
    return run


def test_no_service_is_reached(filtered: Callable[[Callable[[], object]], str], tmp_path: Path) -> None:
    path = str(tmp_path / "service")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as service:
        service.bind(path)
        sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with sender:
            assert filtered(lambda: sender.connect(path)) == REFUSED
            assert filtered(lambda: sender.sendto(b"x", path)) == REFUSED
            assert filtered(lambda: sender.sendmsg([b"x"], [], 0, path)) == REFUSED
            assert forked(lambda: sender.sendto(b"x", path)) == "1"


def test_a_server_serves(filtered: Callable[[Callable[[], object]], str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:

        def serve() -> int:
            with server.accept()[0] as connection:
                return connection.send(b"hello")

        assert filtered(serve) == "5"
        assert client.recv(5) == b"hello"


def test_permissions_stay_as_they_are(filtered: Callable[[Callable[[], object]], str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    assert filtered(lambda: file.chmod(0o666)) == REFUSED
    assert filtered(lambda: os.chown(file, os.getuid(), os.getgid())) == REFUSED
    assert filtered(lambda: os.setxattr(file, "user.note", b"x")) == REFUSED
    assert filtered(lambda: os.truncate(file, 0)) == REFUSED


@pytest.mark.parametrize("number", [425, 452, 463, 466, 469])
def test_newer_calls_are_no_way_around(filtered: Callable[[Callable[[], object]], str], number: int) -> None:
    assert filtered(lambda: call("syscall", number, 1, 0)).endswith(REFUSED)


def test_the_second_table_of_x86_is_no_way_around(filtered: Callable[[Callable[[], object]], str]) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("only x86-64 has one")
    assert filtered(lambda: call("syscall", 0x40000000 + 39)).endswith(REFUSED)
