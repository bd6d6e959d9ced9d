"""Carries out what the lease decides: connections wait here for the server, and the server is checked after each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from threading import Condition, Event, Thread

from app.p2p.frames import State, Status
from app.p2p.lease import Action, Check, Connect, Decline, Drop, Lease, Refuse, Server, View
from app.p2p.server import Ready, RpcServer, ServerState

LOOK_INTERVAL = 0.5
"""Seconds between looks whether a head still waits."""

log = logging.getLogger(__name__)


class Borrower:
    """A data connection that wants the server. `drop` ends it from any thread."""

    def __init__(self, drop: Callable[[], None], gone: Callable[[], bool] = lambda: False) -> None:
        """`gone`: whether the head has ended it while it waits."""
        self.drop = drop
        self._gone = gone
        self._decided = Event()
        self._decision: Connect[Borrower] | Decline[Borrower] | Refuse[Borrower] | None = None

    def decide(self, decision: Connect[Borrower] | Decline[Borrower] | Refuse[Borrower]) -> None:
        """End the wait."""
        self._decision = decision
        self._decided.set()

    def give_up(self) -> None:
        """End the wait with nothing."""
        self._decided.set()

    def wait(self) -> Connect[Borrower] | Decline[Borrower] | Refuse[Borrower] | None:
        """The decision, when the lease makes it come; None when the connection is to end, or has ended."""
        while not self._decided.wait(LOOK_INTERVAL):
            if self._gone():
                return None
        return self._decision


@dataclass(frozen=True)
class _Shown:
    """What heads are told of, kept to see whether it has changed."""

    view: View
    server: ServerState | None
    stopping: bool


class Lender:
    """The lease of one server, under one lock. Any thread may call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = Condition()
        self._lease: Lease[Borrower] = Lease()
        self._server: RpcServer | None = None
        self._stopping = False
        self._checks = 0
        self._version = 0
        self._shown: _Shown | None = None

    def start(self, server: RpcServer) -> None:
        """Lend `server`, whose changes come through `server_changed`, and end leases whose time is over."""
        self._server = server
        Thread(target=self._end_leases, name="lease", daemon=True).start()

    def stop(self) -> None:
        """Tell every head that it ends."""
        with self._changed:
            self._stopping = True
            self._note()

    def server_changed(self, state: ServerState) -> None:
        """News of the server."""
        with self._changed:
            ready = isinstance(state, Ready)
            actions = self._lease.server_ready() if ready else self._lease.server_lost(self._clock())
            self._note()
        self._perform(actions)

    def join(self, session: str, name: str, control: Hashable) -> None:
        """`session` has a control connection and may borrow."""
        with self._changed:
            self._lease.join(session, name, control)

    def leave(self, control: Hashable) -> None:
        """A control connection is lost."""
        with self._changed:
            actions = self._lease.leave(control)
            self._note()
        self._perform(actions)

    def borrow(
        self, session: str, borrower: Borrower
    ) -> Connect[Borrower] | Decline[Borrower] | Refuse[Borrower] | None:
        """Wait until it is decided whether `borrower` gets the server. After Connect or None call `give_back`."""
        with self._changed:
            actions = self._lease.ask(session, borrower, self._clock())
            self._note()
        self._perform(actions)
        return borrower.wait()

    def give_back(self, borrower: Borrower) -> None:
        """Both ends of the connection are closed; the server is checked before the next one has it."""
        with self._changed:
            actions = self._lease.closed(borrower, self._clock())
            self._note()
        self._perform(actions)

    @property
    def idle(self) -> bool:
        """Whether no connection is through to the server."""
        with self._changed:
            return self._lease.view.server is not Server.ACTIVE

    def status(self) -> Status:
        """What a head is told."""
        with self._changed:
            view = self._lease.view
            state = self._server.state if self._server else None
            since = int(self._clock() - view.since) if view.holder else 0
            ready = state if isinstance(state, Ready) else Ready((), "")
            return Status(self._state(view), view.holder, since, ready.protocol, ready.devices)

    def wait_for_change(self, seen: int, timeout: float) -> int:
        """The number of changes so far, as soon as it is not `seen`, at the latest after `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._version != seen, timeout)
            return self._version

    def _state(self, view: View) -> State:
        if self._stopping:
            return State.STOPPING
        if view.server is Server.DOWN:
            return State.STARTING
        if view.holder:
            return State.BUSY
        return State.READY if view.server is Server.IDLE else State.CHECKING

    def _perform(self, actions: tuple[Action[Borrower], ...]) -> None:
        """Carry out `actions`, not holding the lock: closing and checking take their time."""
        while actions:
            check = False
            for action in actions:
                if isinstance(action, Check):
                    check = True
                elif isinstance(action, Drop):
                    action.connection.drop()
                    action.connection.give_up()
                else:
                    action.connection.decide(action)
            actions = self._check() if check else ()

    def _check(self) -> tuple[Action[Borrower], ...]:
        assert self._server is not None, "a connection was lent before there was a server"
        with self._changed:
            self._checks += 1
            this = self._checks
        self._server.check_after_lease()
        with self._changed:
            if this != self._checks:
                return ()  # it was started again and lent meanwhile: a newer check decides
            # Not its answer but what is so now: it may have been started again meanwhile.
            well = isinstance(self._server.state, Ready)
            actions = self._lease.server_ready() if well else self._lease.server_lost(self._clock())
            self._note()
        return actions

    def _end_leases(self) -> None:
        with self._changed:
            while True:
                deadline = self._lease.deadline()
                self._changed.wait(None if deadline is None else max(0.0, deadline - self._clock()))
                self._lease.expire(self._clock())
                self._note()

    def _note(self) -> None:
        """Under the lock: count and tell a change, and log who has the server."""
        shown = _Shown(self._lease.view, self._server.state if self._server else None, self._stopping)
        if shown == self._shown:
            return
        before, now = self._shown.view.holder if self._shown else "", shown.view.holder
        if now != before:
            log.info("%s", f"{now} has the server" if now else f"{before} is done with the server")
        self._shown = shown
        self._version += 1
        self._changed.notify_all()
