"""Goal: systemd hears exactly what we say, and its absence is no trouble."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.p2p import systemd

HANG_GUARD = 10.0


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(HANG_GUARD)
        yield ear


def test_the_words_arrive_at_a_path(listener: socket.socket, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    listener.bind(address)

    assert systemd.notify({"NOTIFY_SOCKET": address}, systemd.READY, systemd.status("1 device"))

    assert listener.recv(100) == b"READY=1\nSTATUS=1 device"


def test_the_words_arrive_at_an_abstract_address(listener: socket.socket, tmp_path: Path) -> None:
    listener.bind(f"\0{tmp_path}")

    assert systemd.notify({"NOTIFY_SOCKET": f"@{tmp_path}"}, systemd.STOPPING)

    assert listener.recv(100) == b"STOPPING=1"


def test_a_status_stays_on_one_line(listener: socket.socket, tmp_path: Path) -> None:
    """A second line would be taken for another message: a crashing server's last words must not say READY=1."""
    listener.bind(f"\0{tmp_path}")

    systemd.notify({"NOTIFY_SOCKET": f"@{tmp_path}"}, systemd.status("down\nREADY=1"))

    assert listener.recv(100) == b"STATUS=down READY=1"


@pytest.mark.parametrize("environ", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_nothing_is_sent_when_systemd_did_not_start_us(environ: dict[str, str]) -> None:
    assert not systemd.notify(environ, systemd.READY)


def test_nobody_listening_is_no_failure(tmp_path: Path) -> None:
    assert not systemd.notify({"NOTIFY_SOCKET": str(tmp_path / "gone")}, systemd.READY)
