"""Goal: what rpc-server would answer with status 0 and no word is one clear error before we become it."""

from __future__ import annotations

import socket

import pytest

from app.errors import ExitCode, WorkerError
from app.server_args import Arguments, check, check_port, join
from tests.conftest import OPTIONS


@pytest.mark.parametrize(
    ("option", "extra", "expected"),
    [
        (None, None, []),
        ("", [], []),
        ("-p 50055 -t 2", None, ["-p", "50055", "-t", "2"]),
        ("-p 50055", ["-t", "2"], ["-p", "50055", "-t", "2"]),
        ("-d 'GPU 0' -H \"127.0.0.1\"", [], ["-d", "GPU 0", "-H", "127.0.0.1"]),
        ("-d Gerät\\ 1", ["-d", "Ж 2"], ["-d", "Gerät 1", "-d", "Ж 2"]),
        ("  -c  ", ["--", "x"], ["-c", "--", "x"]),
    ],
)
def test_join_splits_like_a_shell_and_keeps_the_order(
    option: str | None, extra: list[str] | None, expected: list[str]
) -> None:
    assert join(option, extra) == expected


def test_devices_add_up_as_in_the_server() -> None:
    arguments = join("-t 2", ["-d", "CPU/CUDA1"], ("Vulkan0", "CUDA0"))
    assert arguments == ["--device", "Vulkan0,CUDA0", "-t", "2", "-d", "CPU/CUDA1"]
    assert check(arguments, OPTIONS).devices == ("Vulkan0", "CUDA0", "CPU", "CUDA1")
    assert check(join(None, None, ("Vulkan0", "CUDA0")), OPTIONS).devices == ("Vulkan0", "CUDA0")
    assert check([], OPTIONS).devices == ()


def test_an_open_quote_is_a_usage_error() -> None:
    with pytest.raises(WorkerError, match="cannot split") as caught:
        join("-d 'GPU", None)
    assert caught.value.code == ExitCode.USAGE


def test_what_the_server_takes_is_taken() -> None:
    assert check([], OPTIONS) == Arguments("127.0.0.1", 50052)
    checked = check(["-H", "0.0.0.0", "--port", "50055", "-c", "-t", "3", "-d", "CPU"], OPTIONS)
    assert (checked.host, checked.port) == ("0.0.0.0", 50055)
    assert {"-c", "--cache", "--host", "-p"} <= checked.given
    assert "--help" not in checked.given
    assert check(["-p", "1", "-p", "2"], OPTIONS).port == 2
    assert "--help" in check(["-h"], OPTIONS).given


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mem", "1"], "no argument '--mem'"),
        (["50055"], "no argument '50055'"),
        ([""], "no argument ''"),
        (["--port=50055"], "no argument '--port=50055'"),
        (["-p"], "-p wants a value"),
        (["-p", "0"], "a number from 1 to 65535"),
        (["-p", "65536"], "a number from 1 to 65535"),
        (["-p", "x"], "a number from 1 to 65535"),
        (["-t", "0"], "a number from 1"),
        (["-t", "²"], "a number from 1"),
        (["-H", "localhost"], "an IPv4 address"),
        (["-H", "::1"], "an IPv4 address"),
        (["-H", "é"], "an IPv4 address"),
    ],
)
def test_what_the_server_would_die_of_is_a_usage_error(arguments: list[str], message: str) -> None:
    with pytest.raises(WorkerError, match=message) as caught:
        check(arguments, OPTIONS)
    assert caught.value.code == ExitCode.USAGE


def test_the_unknown_argument_tells_the_known_ones() -> None:
    with pytest.raises(WorkerError) as caught:
        check(["--nope"], OPTIONS)
    assert "-p, --port PORT" in caught.value.hint


def test_a_taken_port_is_told() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        with pytest.raises(WorkerError, match="address already in use") as caught:
            check_port("127.0.0.1", holder.getsockname()[1])
        assert caught.value.code == ExitCode.FAILED
        assert "-p" in caught.value.hint


def test_an_address_of_nobody_is_told() -> None:
    with pytest.raises(WorkerError, match="cannot assign requested address"):
        check_port("192.0.2.1", 50052)


def test_a_free_port_is_free_afterwards() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    check_port("127.0.0.1", port)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
