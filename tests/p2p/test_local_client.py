"""Goal: a tunnel serves programs of its own user and of root, and of nobody else."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator

import pytest

from app.p2p.local_client import refusal
from tests.conftest import needs_root, nobody
from tests.p2p.fake_worker import eventually


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        made.settimeout(30)
        yield made


def as_nobody(do: Callable[[], None]) -> int:
    """Run `do` in a process of another user; its exit status, 0 when it raised nothing."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setuid(nobody)
            do()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_our_own_program_is_let_in(listener: socket.socket, family: socket.AddressFamily) -> None:
    """Over IPv6 it is a connection to `::ffff:127.0.0.1`, which stands in another table."""
    host = "127.0.0.1" if family == socket.AF_INET else "::ffff:127.0.0.1"
    with socket.socket(family) as client:
        client.connect((host, listener.getsockname()[1]))
        with listener.accept()[0] as accepted:
            assert refusal(accepted) is None


def test_who_has_closed_already_has_no_owner_and_is_refused(listener: socket.socket) -> None:
    client = socket.create_connection(listener.getsockname())
    client.sendall(b"secret")
    with listener.accept()[0] as accepted:
        client.close()
        eventually(lambda: refusal(accepted) is not None)
        assert refusal(accepted) == "it has gone already"


@needs_root
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_another_user_is_refused_also_when_gone(listener: socket.socket, family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::ffff:127.0.0.1"
    seen: list[str | None] = []
    pid = os.fork()
    if pid == 0:
        os.setuid(nobody)
        client = socket.socket(family)
        client.connect((host, listener.getsockname()[1]))
        client.recv(1)
        os._exit(0)
    with listener.accept()[0] as accepted:
        seen.append(refusal(accepted))
        accepted.sendall(b"x")
        os.waitpid(pid, 0)
        seen.append(refusal(accepted))
    assert seen == [f"it belongs to another user, uid {nobody}", seen[1]]
    assert seen[1] is not None


@needs_root
def test_root_is_let_in_by_an_unprivileged_head() -> None:
    ready, tell = os.pipe()

    def head() -> None:
        with socket.create_server(("127.0.0.1", 0)) as made:
            os.write(tell, str(made.getsockname()[1]).encode())
            with made.accept()[0] as accepted:
                assert refusal(accepted) is None

    pid = os.fork()
    if pid == 0:
        os._exit(as_nobody(head))
    with socket.create_connection(("127.0.0.1", int(os.read(ready, 16)))):
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
