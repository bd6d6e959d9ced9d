"""Goal: a server that the user runs is used while it is there, and waited for while it is not."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from app.launch import ServerCommand
from app.p2p import external, rpc
from app.p2p.external import ExternalServer
from app.p2p.keeper import Child, Keeper, start_keeper
from app.p2p.server import Down, Ready, ServerState

HANG_GUARD = 30.0
"""Seconds, generous: reached only when something never happens."""


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> Iterator[Keeper]:
    """Stands for the user who starts and stops the server: a keeper whose server everybody reaches."""
    monkeypatch.setattr(external, "LOOK_INTERVAL", 0.01)
    keeper = start_keeper("off")
    yield keeper
    keeper.close()


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

    def wait_for(self, *kinds: type) -> ServerState:
        """The last state, once exactly these kinds have been told."""
        with self._news:
            assert self._news.wait_for(lambda: tuple(map(type, self.states)) == kinds, HANG_GUARD), self.states
            return self.states[-1]


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


def listening(user: Keeper, command: ServerCommand, port: int | None = None) -> Child:
    child = user.spawn(command, port)
    deadline = time.monotonic() + HANG_GUARD
    while time.monotonic() < deadline:
        try:
            user.dial(child, HANG_GUARD).close()
            return child
        except ConnectionRefusedError:
            assert child.wait(0.05) is None, "the server ended"
    raise AssertionError("the server never listened")


def test_a_server_that_is_there_is_ready(
    user: Keeper, rpc_server: ServerCommand, watch: Callable[[int], Watched]
) -> None:
    watched = watch(listening(user, rpc_server).port)

    ready = watched.wait_for(Ready)

    assert isinstance(ready, Ready)
    assert [device.name for device in ready.devices] == ["device0"]
    assert ready.devices[0].total > 0
    with watched.server.dial(HANG_GUARD) as connection:
        assert rpc.hello(connection, HANG_GUARD) == ready.protocol
    assert watched.server.check_after_lease()
    assert watched.server.state == watched.wait_for(Ready)


def test_a_server_is_waited_for_and_missed(
    user: Keeper, rpc_server: ServerCommand, watch: Callable[[int], Watched]
) -> None:
    first = listening(user, rpc_server)
    user.kill(first)
    watched = watch(first.port)
    down = watched.wait_for(Down)
    assert isinstance(down, Down)
    assert f"127.0.0.1:{first.port}" in down.reason

    second = listening(user, rpc_server, first.port)
    watched.wait_for(Down, Ready)

    user.kill(second)
    with pytest.raises(ConnectionRefusedError):
        watched.server.dial(HANG_GUARD)
    watched.wait_for(Down, Ready, Down)


def test_a_server_that_hangs_after_a_lease_is_waited_for(
    user: Keeper, rpc_server: ServerCommand, watch: Callable[[int], Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    child = listening(user, rpc_server)
    watched = watch(child.port)
    watched.wait_for(Ready)
    monkeypatch.setattr(external, "CHECK_LIMIT", 0.3)
    os.kill(child.pid, signal.SIGSTOP)

    assert not watched.server.check_after_lease()

    watched.wait_for(Ready, Down)
    os.kill(child.pid, signal.SIGCONT)
    watched.wait_for(Ready, Down, Ready)


def test_nothing_is_told_after_the_stop(
    user: Keeper, rpc_server: ServerCommand, watch: Callable[[int], Watched]
) -> None:
    child = listening(user, rpc_server)
    watched = watch(child.port)
    watched.wait_for(Ready)

    watched.server.stop()

    user.kill(child)
    with pytest.raises(ConnectionRefusedError):
        watched.server.dial(HANG_GUARD)
    assert not watched.server.check_after_lease()
    assert not watched.server._thread.is_alive()
    watched.wait_for(Ready)
