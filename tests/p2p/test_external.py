"""Goal: a server that the user runs is used while it is there, and waited for while it is not."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from app.launch import ServerCommand
from app.p2p import external, rpc
from app.p2p.external import ExternalServer
from app.p2p.server import Down, Ready, ServerState

StateT = TypeVar("StateT", Ready, Down)

HANG_GUARD = 30.0
"""Seconds, generous: reached only when something never happens."""


class User:
    """Who starts and stops the server as any program is started, always on the same port."""

    def __init__(self, command: ServerCommand) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._command = command
        self.server: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        argv = [*self._command.argv, "--port", str(self.port)]
        self.server = subprocess.Popen(
            argv, env=self._command.env, cwd=self._command.cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        return self.server

    def kill(self) -> None:
        if self.server is not None:
            self.server.kill()
            self.server.wait()


@pytest.fixture
def user(rpc_server: ServerCommand, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    monkeypatch.setattr(external, "LOOK_INTERVAL", 0.01)
    user = User(rpc_server)
    yield user
    user.kill()


class Watched:
    """A server under test, and what it told."""

    def __init__(self, port: int) -> None:
        self.states: list[ServerState] = []
        self._news = threading.Condition()
        self.server = ExternalServer(("127.0.0.1", port), rpc.probe, self._on_change)

    def _on_change(self, state: ServerState) -> None:
        with self._news:
            self.states.append(state)
            self._news.notify_all()

    def wait_for_end(self, kind: type[StateT]) -> StateT:
        """The last state told, once it is of this kind."""
        with self._news:
            assert self._news.wait_for(lambda: self.states and isinstance(self.states[-1], kind), HANG_GUARD)
            last = self.states[-1]
            assert isinstance(last, kind), self.states
            return last


@pytest.fixture
def watch() -> Iterator[Callable[[int], Watched]]:
    made: list[Watched] = []

    def make(port: int) -> Watched:
        made.append(Watched(port))
        made[-1].server.start()
        return made[-1]

    yield make
    for watched in made:
        watched.server.stop()


def test_a_server_that_is_there_is_ready(user: User, watch: Callable[[int], Watched]) -> None:
    user.start()
    watched = watch(user.port)

    ready = watched.wait_for_end(Ready)

    assert [device.name for device in ready.devices] == ["device0"]
    assert ready.devices[0].total > 0
    with watched.server.dial(HANG_GUARD) as connection:
        assert rpc.hello(connection, HANG_GUARD) == ready.protocol
    told = len(watched.states)
    assert watched.server.check_after_lease()
    assert isinstance(watched.server.state, Ready)
    assert len(watched.states) == told


def test_a_server_is_waited_for_and_missed(user: User, watch: Callable[[int], Watched]) -> None:
    watched = watch(user.port)
    assert f"127.0.0.1:{user.port}" in watched.wait_for_end(Down).reason

    user.start()
    watched.wait_for_end(Ready)

    user.kill()
    with pytest.raises(ConnectionRefusedError):
        watched.server.dial(HANG_GUARD)
    watched.wait_for_end(Down)
    assert [type(state) for state in watched.states] == [Down, Ready, Down]


def test_a_server_that_computes_for_long_is_waited_for_and_lives(
    user: User, watch: Callable[[int], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = user.start()
    watched = watch(user.port)
    watched.wait_for_end(Ready)
    monkeypatch.setattr(external, "CHECK_LIMIT", 0.3)
    server.send_signal(signal.SIGSTOP)

    assert not watched.server.check_after_lease()

    assert "nothing within 0.3 s" in watched.wait_for_end(Down).reason
    server.send_signal(signal.SIGCONT)
    watched.wait_for_end(Ready)
    assert watched.server.check_after_lease()
    assert server.poll() is None, "our impatience has killed it"


def test_nothing_is_told_after_the_stop(user: User, watch: Callable[[int], Watched]) -> None:
    user.start()
    watched = watch(user.port)
    watched.wait_for_end(Ready)
    told = len(watched.states)

    watched.server.stop()

    user.kill()
    with pytest.raises(ConnectionRefusedError):
        watched.server.dial(HANG_GUARD)
    assert not watched.server.check_after_lease()
    assert not watched.server._thread.is_alive()
    assert len(watched.states) == told
