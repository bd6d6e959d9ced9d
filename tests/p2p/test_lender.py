"""Goal: the lease's decisions reach the connections, and after each one the server is checked before the next.

The server here only answers what it is told to; test_relay.py has the real one.
"""

from __future__ import annotations

import socket
import threading

import pytest

from app.p2p.frames import State
from app.p2p.lease import Connect, Decline, Refuse
from app.p2p.lender import Borrower, Lender
from app.p2p.server import Down, Ready, ServerState, Starting

LIMIT = 20.0
READY = Ready((), "7.0.0")


class Server:
    """Answers a check as it is told."""

    def __init__(self, state: ServerState) -> None:
        self.state = state
        self.after_check: ServerState = state
        self.checks = 0

    def check_after_lease(self) -> bool:
        self.checks += 1
        self.state = self.after_check
        return isinstance(self.state, Ready)

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def dial(self, timeout: float) -> socket.socket:
        raise AssertionError("the lender dials nobody")


@pytest.fixture
def server() -> Server:
    return Server(READY)


@pytest.fixture
def lender(server: Server) -> Lender:
    made = Lender()
    made.start(server)
    made.server_changed(READY)
    made.join("a", "desk", "control-a")
    made.join("b", "lap", "control-b")
    return made


def borrower(dropped: list[str] | None = None, name: str = "") -> Borrower:
    return Borrower(drop=lambda: (dropped if dropped is not None else []).append(name))


def test_one_session_at_a_time(lender: Lender, server: Server) -> None:
    first = borrower()
    assert isinstance(lender.borrow("a", first), Connect)
    assert (lender.status().state, lender.status().holder) == (State.BUSY, "desk")
    declined = lender.borrow("b", borrower())
    assert isinstance(declined, Decline)
    assert declined.holder == "desk"
    assert isinstance(lender.borrow("nobody", borrower()), Refuse)
    lender.give_back(first)
    assert server.checks == 1
    lender.leave("control-a")
    assert lender.status().state is State.READY
    assert isinstance(lender.borrow("b", borrower()), Connect)


def test_the_next_one_waits_for_the_check(lender: Lender, server: Server) -> None:
    first, second = borrower(), borrower()
    lender.borrow("a", first)
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(lender.borrow("a", second)))
    waiting.start()
    server.after_check = Starting()  # it hangs, and is started again
    lender.give_back(first)
    waiting.join(0.2)
    assert got == []
    assert lender.status().state is State.STARTING
    server.state = server.after_check = READY
    lender.server_changed(READY)
    waiting.join(LIMIT)
    assert isinstance(got[0], Connect)


def test_a_server_that_was_back_before_the_check_had_ended(lender: Lender, server: Server) -> None:
    """`check_after_lease` said no, and by then the server was ready again: that must not be forgotten."""
    first = borrower()
    lender.borrow("a", first)
    check = server.check_after_lease

    def hung_and_back() -> bool:
        check()
        lender.server_changed(Down("hung"))
        lender.server_changed(READY)
        return False

    server.check_after_lease = hung_and_back  # type: ignore[method-assign]
    lender.give_back(first)
    assert isinstance(lender.borrow("a", borrower()), Connect)


def test_a_lost_control_connection_drops_what_it_had(lender: Lender) -> None:
    dropped: list[str] = []
    active, waiting = borrower(dropped, "active"), borrower(dropped, "waiting")
    lender.borrow("a", active)
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(lender.borrow("a", waiting)))
    thread.start()
    thread.join(0.1)
    lender.leave("control-a")
    thread.join(LIMIT)
    assert sorted(dropped) == ["active", "waiting"]
    assert got == [None]
    lender.give_back(waiting)
    lender.give_back(active)
    assert isinstance(lender.borrow("b", borrower()), Connect)


def test_a_connection_that_has_gone_waits_no_more(lender: Lender) -> None:
    active = borrower()
    lender.borrow("a", active)
    for _ in range(3):
        gone = Borrower(drop=lambda: None, gone=lambda: True)
        assert lender.borrow("a", gone) is None
        lender.give_back(gone)
    lender.give_back(active)
    assert isinstance(lender.borrow("a", borrower()), Connect)


def test_changes_are_told_once(lender: Lender) -> None:
    seen = lender.wait_for_change(-1, 0)
    assert lender.wait_for_change(seen, 0.05) == seen
    lender.server_changed(READY)
    assert lender.wait_for_change(seen, 0.05) == seen, "nothing has changed"
    lender.borrow("a", borrower())
    assert lender.wait_for_change(seen, LIMIT) > seen
    lender.stop()
    assert lender.status().state is State.STOPPING
