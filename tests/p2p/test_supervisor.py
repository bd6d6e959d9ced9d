"""Goal: a server that can run is running and told so, one that cannot is given up in time, with the reason."""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest

from app.errors import ExitCode, WorkerError
from app.launch import ServerCommand
from app.p2p import keeper as keeper_module
from app.p2p import rpc, supervisor
from app.p2p.backoff import MAX_DELAY, STEADY
from app.p2p.keeper import Keeper, start_keeper
from app.p2p.layers import Layer
from app.p2p.server import Down, Failed, Ready, ServerState, Starting
from app.p2p.supervisor import ATTEMPTS, FIRST_DELAY, LAST_LINES, Supervisor
from tests.p2p.processes import is_gone, shell, wait_until

HANG_GUARD = 30.0
"""Seconds, generous: reached only when something never happens."""
MUTE = "import socket, sys, time; server = socket.create_server(('127.0.0.1', int(sys.argv[-1]))); time.sleep(1000)"
"""A stand-in that takes connections and never says a word."""


class Watched:
    """A supervisor under test, what it told, and what it would have waited."""

    def __init__(self, keeper: Keeper, command: ServerCommand, start_timeout: float = HANG_GUARD) -> None:
        self.states: list[ServerState] = []
        self.lines: list[str] = []
        self.delays: list[float] = []
        self.prepared = 0
        self.in_vain = 0
        self.now = 0.0
        self.when_told: Callable[[ServerState], None] = lambda state: None
        self._command = command
        self._news = threading.Condition()
        self.supervisor = Supervisor(
            keeper,
            self._prepare,
            rpc.probe,
            self._on_change,
            start_timeout=start_timeout,
            echo=self.lines.append,
            clock=lambda: self.now,
            pause=self.delays.append,
            after_vain_start=self._after_vain_start,
        )

    def _after_vain_start(self) -> None:
        self.in_vain += 1

    def _prepare(self) -> ServerCommand:
        self.prepared += 1
        return self._command

    def _on_change(self, state: ServerState) -> None:
        self.when_told(state)
        with self._news:
            self.states.append(state)
            self._news.notify_all()

    @property
    def kinds(self) -> list[type]:
        return [type(state) for state in self.states]

    def wait_for(self, kind: type, times: int = 1) -> ServerState:
        with self._news:
            assert self._news.wait_for(lambda: self.kinds.count(kind) >= times, HANG_GUARD), self.states
        return next(state for state in reversed(self.states) if isinstance(state, kind))

    def wait_for_failure(self) -> WorkerError:
        failed = self.wait_for(Failed)
        assert isinstance(failed, Failed)
        return failed.error

    @property
    def pid(self) -> int:
        child = self.supervisor._child
        assert child is not None
        return child.pid


@pytest.fixture(params=["auto", "off"])
def keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    """With a sandbox where the machine allows one, and without."""
    keeper = start_keeper(request.param)
    if request.param == "auto" and not keeper.has_network:
        keeper.close()
        pytest.skip(f"this machine allows no namespace: {keeper.missing[Layer.NETWORK]}")
    yield keeper
    keeper.close()


@pytest.fixture
def watch(keeper: Keeper) -> Iterator[Callable[..., Watched]]:
    """Makes watched supervisors and stops them."""
    made: list[Watched] = []

    def make(command: ServerCommand, start_timeout: float = HANG_GUARD) -> Watched:
        made.append(Watched(keeper, command, start_timeout))
        return made[-1]

    yield make
    for watched in made:
        with suppress(RuntimeError):  # never started
            watched.supervisor.stop()


def answers(server: Supervisor) -> bool:
    with server.dial(HANG_GUARD) as connection:
        return bool(rpc.hello(connection, HANG_GUARD))


def test_a_server_is_ready_with_its_devices(rpc_server: ServerCommand, watch: Callable[..., Watched]) -> None:
    watched = watch(rpc_server)
    watched.supervisor.start()

    ready = watched.wait_for(Ready)

    assert isinstance(ready, Ready)
    assert watched.kinds == [Starting, Ready]
    assert watched.supervisor.state == ready
    assert re.fullmatch(r"\d+\.\d+\.\d+", ready.protocol)
    assert [device.name for device in ready.devices] == ["CPU"]
    assert ready.devices[0].description
    assert ready.devices[0].total >= ready.devices[0].free > 0
    assert answers(watched.supervisor)
    assert any(line.startswith("Starting RPC server") for line in watched.lines)


def test_a_stopped_server_is_gone_and_nothing_more_is_told(
    rpc_server: ServerCommand, watch: Callable[..., Watched]
) -> None:
    watched = watch(rpc_server)
    watched.supervisor.start()
    watched.wait_for(Ready)

    watched.supervisor.stop()

    assert is_gone(watched.pid)
    assert watched.kinds == [Starting, Ready]
    with pytest.raises(OSError):
        watched.supervisor.dial(HANG_GUARD)


def test_a_killed_server_is_told_and_started_again(rpc_server: ServerCommand, watch: Callable[..., Watched]) -> None:
    watched = watch(rpc_server)
    watched.supervisor.start()
    watched.wait_for(Ready)
    first = watched.pid

    os.kill(first, signal.SIGKILL)
    watched.wait_for(Ready, times=2)

    assert watched.kinds == [Starting, Ready, Down, Starting, Ready]
    assert watched.states[2] == Down("rpc-server was killed by SIGKILL")
    assert watched.delays == [FIRST_DELAY]
    assert FIRST_DELAY <= 1
    assert watched.pid != first
    assert watched.prepared == 2, "its files were not looked at before each start"
    assert answers(watched.supervisor)


def test_crashes_in_a_row_are_spread_out_and_a_steady_time_forgives_them(
    rpc_server: ServerCommand, watch: Callable[..., Watched]
) -> None:
    watched = watch(rpc_server)
    crashes = 9

    def crash(state: ServerState) -> None:
        if isinstance(state, Ready) and len(watched.delays) <= crashes:
            if len(watched.delays) == crashes:
                watched.now += STEADY
            os.kill(watched.pid, signal.SIGKILL)

    watched.when_told = crash
    watched.supervisor.start()
    watched.wait_for(Ready, times=crashes + 2)

    assert watched.delays[0] == watched.delays[-1] == FIRST_DELAY
    assert all(later == min(2 * earlier, MAX_DELAY) for earlier, later in pairwise(watched.delays[:-1]))
    assert max(watched.delays) == MAX_DELAY <= 30
    starts = [sum(watched.delays[:number]) for number in range(crashes + 1)]
    assert max(sum(start <= other < start + 60 for other in starts) for start in starts) <= 10
    assert not any(isinstance(state, Failed) for state in watched.states)


@pytest.mark.parametrize(
    ("arguments", "how", "last_line"),
    [
        (["--surely-not"], "ended with exit status 0", "error: unknown argument: --surely-not"),
        (["-d", "NOPE"], "ended with exit status 1", "error: unknown device: NOPE"),
    ],
)
def test_a_server_that_ends_at_once_is_given_up_with_its_last_lines(
    rpc_server: ServerCommand, watch: Callable[..., Watched], arguments: list[str], how: str, last_line: str
) -> None:
    watched = watch(ServerCommand([*rpc_server.argv, *arguments], rpc_server.env, rpc_server.cwd))
    watched.supervisor.start()

    error = watched.wait_for_failure()

    assert error.code == ExitCode.CRASHING
    assert how in error.message.splitlines()[0]
    assert last_line in error.message
    assert error.hint
    assert watched.prepared == watched.in_vain == ATTEMPTS <= 10
    assert len(watched.delays) == ATTEMPTS - 1
    assert Ready not in watched.kinds


def test_no_more_than_the_last_lines_are_shown_and_none_steers_the_terminal(watch: Callable[..., Watched]) -> None:
    watched = watch(shell(r"for n in {1..50}; do printf 'line \e[2J%d\n' $n; done"))
    watched.supervisor.start()

    lines = watched.wait_for_failure().message.splitlines()[1:]

    assert len(lines) == LAST_LINES
    assert lines[-1].endswith("50")
    assert "\x1b" not in "".join(lines + watched.lines)


@pytest.mark.parametrize("argv", [["/bin/sleep", "1000"], [sys.executable, "-c", MUTE]], ids=["deaf", "mute"])
def test_a_server_that_hangs_is_killed_when_its_time_is_up(watch: Callable[..., Watched], argv: list[str]) -> None:
    hang = ["/bin/bash", "-c", "exec sleep 1000"] if argv[0] == "/bin/sleep" else argv
    watched = watch(ServerCommand(hang, {"PATH": os.defpath}, Path("/")), 0.3)
    pids: list[int] = []
    watched.when_told = lambda state: pids.append(watched.pid) if isinstance(state, Down) else None
    watched.supervisor.start()

    error = watched.wait_for_failure()

    assert error.code == ExitCode.CRASHING
    assert "did not answer within 0.3 s" in error.message
    assert len(set(pids)) == ATTEMPTS
    assert all(map(is_gone, pids))


def test_a_program_that_cannot_be_run_is_given_up(watch: Callable[..., Watched]) -> None:
    watched = watch(ServerCommand(["/nonexistent-program"], {}, Path("/")))
    watched.supervisor.start()

    assert "No such file" in watched.wait_for_failure().message


def test_files_that_cannot_be_used_are_the_error(watch: Callable[..., Watched]) -> None:
    watched = watch(shell("exit 0"))
    unusable = WorkerError("the disk is full", "make room", ExitCode.ASSETS)

    def fail() -> ServerCommand:
        raise unusable

    watched.supervisor._prepare = fail
    watched.supervisor.start()

    assert watched.wait_for_failure() is unusable


def test_the_loss_of_the_keeper_is_the_end(
    rpc_server: ServerCommand, keeper: Keeper, watch: Callable[..., Watched]
) -> None:
    watched = watch(rpc_server)
    watched.supervisor.start()
    watched.wait_for(Ready)

    os.kill(keeper._pid, signal.SIGKILL)

    assert "ended" in watched.wait_for_failure().message
    assert wait_until(lambda: is_gone(watched.pid))


def test_a_port_taken_at_the_last_moment_is_left_for_another(
    rpc_server: ServerCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = start_keeper("off")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        choose = keeper_module._free_port
        ports = iter([taken])
        monkeypatch.setattr(keeper_module, "_free_port", lambda wanted: next(ports, None) or choose(wanted))
        watched = Watched(keeper, rpc_server)
        watched.supervisor.start()
        watched.wait_for(Ready)

        assert watched.kinds == [Starting, Down, Starting, Ready]
        assert watched.supervisor._child is not None
        assert watched.supervisor._child.port != taken
        assert answers(watched.supervisor)
        stranger.settimeout(HANG_GUARD)
        with suppress(BlockingIOError):  # it may have been dialled before the server gave up
            stranger.setblocking(False)
            while True:
                with stranger.accept()[0] as dialled:
                    assert dialled.recv(1) == b"", "the stranger was talked to"
        watched.supervisor.stop()
    keeper.close()


def test_a_server_that_is_well_after_a_lease_goes_on(rpc_server: ServerCommand, watch: Callable[..., Watched]) -> None:
    watched = watch(rpc_server)
    watched.supervisor.start()
    before = watched.wait_for(Ready)
    pid = watched.pid

    assert watched.supervisor.check_after_lease()

    after = watched.supervisor.state
    assert isinstance(before, Ready)
    assert isinstance(after, Ready)
    assert after is not before, "the memory was not looked at again"
    assert [device.name for device in after.devices] == [device.name for device in before.devices]
    assert watched.kinds == [Starting, Ready]
    assert watched.pid == pid


def test_a_server_that_hangs_after_a_lease_is_started_again_at_once(
    rpc_server: ServerCommand, watch: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "CHECK_LIMIT", 0.3)
    monkeypatch.setattr(keeper_module, "TERM_LIMIT", 0.1)  # what is stopped cannot hear SIGTERM
    watched = watch(rpc_server)
    watched.supervisor.start()
    for round in range(ATTEMPTS + 1):  # as often as one likes: it is not the server's fault
        watched.wait_for(Ready, times=round + 1)
        pid = watched.pid
        os.kill(pid, signal.SIGSTOP)

        assert not watched.supervisor.check_after_lease()

        assert is_gone(pid)
    watched.wait_for(Ready, times=ATTEMPTS + 2)
    assert watched.kinds == [Starting, Ready] + [Down, Starting, Ready] * (ATTEMPTS + 1)
    assert isinstance(watched.states[2], Down)
    assert "did not answer within 0.3 s" in watched.states[2].reason
    assert watched.delays == []
    assert answers(watched.supervisor)


def test_a_server_that_dies_under_the_check_is_simply_started_again(
    rpc_server: ServerCommand, watch: Callable[..., Watched]
) -> None:
    watched = watch(rpc_server)
    watched.supervisor.start()
    watched.wait_for(Ready)

    os.kill(watched.pid, signal.SIGKILL)

    watched.supervisor.check_after_lease()  # true only if all is over already
    watched.wait_for(Ready, times=2)
    assert watched.kinds == [Starting, Ready, Down, Starting, Ready]
    assert watched.supervisor.check_after_lease()


def test_a_start_can_be_stopped(watch: Callable[..., Watched]) -> None:
    watched = watch(shell("exec sleep 1000"))
    watched.supervisor.start()
    assert wait_until(lambda: watched.supervisor._child is not None)

    watched.supervisor.stop()

    assert is_gone(watched.pid)
    assert not watched.supervisor._thread.is_alive()
    assert watched.kinds == [Starting]


def test_a_wait_between_starts_can_be_stopped(keeper: Keeper) -> None:
    told = threading.Event()
    server = Supervisor(
        keeper,
        lambda: shell("exit 1"),
        rpc.probe,
        lambda state: told.set() if isinstance(state, Down) else None,
        start_timeout=HANG_GUARD,
        echo=lambda line: None,
    )
    server.start()
    assert told.wait(HANG_GUARD)

    server.stop()

    assert not server._thread.is_alive()


def test_a_stdout_that_is_gone_does_not_matter(rpc_server: ServerCommand, watch: Callable[..., Watched]) -> None:
    watched = watch(rpc_server)

    def broken(line: str) -> None:
        raise BrokenPipeError

    watched.supervisor._echo = broken
    watched.supervisor.start()

    ready = watched.wait_for(Ready)

    assert isinstance(ready, Ready)
    assert [device.name for device in ready.devices] == ["CPU"]


def test_restarts_cost_no_descriptor_and_no_thread(
    rpc_server: ServerCommand, keeper: Keeper, watch: Callable[..., Watched]
) -> None:
    def held() -> tuple[int, int, int]:
        return len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{keeper._pid}/fd")), threading.active_count()

    watched = watch(rpc_server)
    watched.supervisor.start()
    watched.wait_for(Ready)
    gc.collect()  # what other tests left
    before = held()
    for number in range(10):
        os.kill(watched.pid, signal.SIGKILL)
        watched.wait_for(Ready, times=number + 2)
        for _ in range(5):
            assert answers(watched.supervisor)

    def no_more() -> bool:  # fewer there may be: what other tests left goes as well
        return all(now <= then for now, then in zip(held(), before, strict=True))

    assert wait_until(no_more), (held(), before)  # the keeper lets go just after it has answered
