"""Goal: the calls on the list are refused, the same numbers in another table too, and nothing else is."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.p2p import privileges, seccomp
from app.p2p.libc import call
from tests.p2p.forked import forked

REFUSED = "Operation not permitted"
NUMBERS = {
    "x86_64": {"fork": 57, "vfork": 58, "unshare": 272, "setns": 308, "clone": 56, "clone3": 435},
    "aarch64": {"unshare": 97, "setns": 268, "clone": 220, "clone3": 435},
}
"""asm/unistd.h"""


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


def new_process() -> None:
    if os.fork() == 0:
        os._exit(0)


@pytest.mark.parametrize("way", [new_process, os.setsid, lambda: os.setpgid(0, 0)], ids=["fork", "setsid", "setpgid"])
def test_it_stays_one_process_where_it_is(
    filtered: Callable[[Callable[[], object]], str], way: Callable[[], object]
) -> None:
    assert filtered(way) == REFUSED
    assert forked(way) == "None"


@pytest.mark.parametrize("name", ["fork", "vfork", "clone", "clone3", "unshare", "setns"])
def test_no_other_call_makes_a_process_or_moves_it(filtered: Callable[[Callable[[], object]], str], name: str) -> None:
    number = NUMBERS.get(os.uname().machine, {}).get(name)
    if number is None:
        pytest.skip("this machine has it not, or its number is not known")

    def attempt() -> None:
        if call("syscall", number, 0, 0, 0, 0, 0) == 0 and name in ("fork", "vfork", "clone"):
            os._exit(0)  # the new one

    told = "Function not implemented" if name == "clone3" else REFUSED
    assert filtered(attempt).endswith(told)
    if name != "vfork":  # Python would not survive it
        assert not forked(attempt).endswith(told)


def test_it_has_threads(filtered: Callable[[Callable[[], object]], str]) -> None:
    def thread() -> str:
        said: list[str] = []
        other = threading.Thread(target=said.append, args=("said",))
        other.start()
        other.join()
        return said[0]

    assert filtered(thread) == "said"


def test_it_sets_limits_to_itself_only(filtered: Callable[[Callable[[], object]], str]) -> None:
    ours = str(resource.getrlimit(resource.RLIMIT_CORE))
    assert filtered(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE)) == REFUSED
    assert filtered(lambda: resource.prlimit(0, resource.RLIMIT_CORE)) == ours
    assert forked(lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE)) == ours


def test_the_second_table_of_x86_is_no_way_around(filtered: Callable[[Callable[[], object]], str]) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("only x86-64 has one")
    assert filtered(lambda: call("syscall", 0x40000000 + 39)).endswith(REFUSED)
