"""Who may use the one-client server, until when: decisions only, `lender` carries them out.

rpc-server serves one connection and lets a second one hang, while one head opens
a dozen, one after the other, with gaps. So it is a head's *session* that gets
the server, and keeps it over the gaps; its connections wait for each other.

The server, as seen from here, is in one of four states:

    DOWN      --server_ready-->  IDLE        it answers
    IDLE      --Connect------->  ACTIVE      a data connection is being served
    ACTIVE    --closed-------->  CHECKING    it may still be computing for who has gone
    CHECKING  --server_ready-->  IDLE        it answered a HELLO
    any       --server_lost--->  DOWN        it died, or did not answer and is restarted

Beside that the lease is held by one session or by none. It begins with the
session's first data connection, whatever state the server is in, and ends when
no connection of it was there for LINGER, or when its control connection is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

LINGER = 10.0
"""Seconds that a session keeps the server after its last connection closed. Real
clients leave gaps of 0.4 s and more; between two commands of one user it is seconds."""
MAX_WAITING = 32
"""Data connections that may wait in one session: each costs the worker a descriptor.
The clients that were measured never had more than one waiting."""

ConnectionT = TypeVar("ConnectionT", bound=Hashable)


class Server(Enum):
    """What the server is doing, as far as the lease is concerned."""

    DOWN = "down"
    IDLE = "idle"
    ACTIVE = "active"
    CHECKING = "checking"


@dataclass(frozen=True)
class Connect(Generic[ConnectionT]):
    """Dial the server for this connection and tell the head ok."""

    connection: ConnectionT


@dataclass(frozen=True)
class Decline(Generic[ConnectionT]):
    """Tell this connection that the server is busy, and close it."""

    connection: ConnectionT
    holder: str
    since: float
    """Seconds that the holder has had the lease."""


@dataclass(frozen=True)
class Refuse(Generic[ConnectionT]):
    """Tell this connection why it cannot be, and close it."""

    connection: ConnectionT
    reason: str


@dataclass(frozen=True)
class Drop(Generic[ConnectionT]):
    """Close both ends of this connection, then call `closed` as always."""

    connection: ConnectionT


@dataclass(frozen=True)
class Check:
    """Send the server a HELLO, then call `server_ready`, or `server_lost` and restart it."""


Action = Connect[ConnectionT] | Decline[ConnectionT] | Refuse[ConnectionT] | Drop[ConnectionT] | Check


@dataclass(frozen=True)
class View:
    """What may be told of the lease."""

    server: Server
    holder: str
    """The name of the head that holds it; empty without one."""
    since: float
    """When it took it, by the caller's clock; 0 without one."""


@dataclass(frozen=True)
class _Session:
    name: str
    control: Hashable


class Lease(Generic[ConnectionT]):
    """The state machine. Not locked: `lender` calls it under its own lock.

    `now` is any clock that never goes back, in seconds. A connection is any
    value that names one; `closed` must be called once for each, after both its
    ends are closed, unless it was declined or refused.
    """

    def __init__(self, linger: float = LINGER) -> None:
        self._linger = linger
        self._server = Server.DOWN
        self._sessions: dict[str, _Session] = {}
        self._holder: str | None = None
        self._since = 0.0
        self._active: ConnectionT | None = None
        self._waiting: deque[ConnectionT] = deque()
        self._quiet_since = 0.0

    def join(self, session: str, name: str, control: Hashable) -> None:
        """`session` has a control connection. A later one of the same session takes the place of the earlier."""
        self._sessions[session] = _Session(name, control)

    def leave(self, control: Hashable) -> tuple[Action[ConnectionT], ...]:
        """A control connection is lost, and with it its session, and a lease of that."""
        for session in [key for key, value in self._sessions.items() if value.control == control]:
            del self._sessions[session]
            if session == self._holder:
                self._holder = None
                dropped = [*self._waiting] if self._active is None else [self._active, *self._waiting]
                self._waiting.clear()
                return tuple(Drop(connection) for connection in dropped)
        return ()

    def ask(self, session: str, connection: ConnectionT, now: float) -> tuple[Action[ConnectionT], ...]:
        """A data connection of `session` wants the server. No action: it waits for its turn."""
        self.expire(now)
        if session not in self._sessions:
            return (Refuse(connection, "no control connection for this session"),)
        if self._holder is None:
            self._holder, self._since = session, now
        if session != self._holder:
            return (Decline(connection, self._sessions[self._holder].name, now - self._since),)
        if len(self._waiting) >= MAX_WAITING:
            return (Refuse(connection, "too many connections are waiting"),)
        self._waiting.append(connection)
        return self._next()

    def closed(self, connection: ConnectionT, now: float) -> tuple[Action[ConnectionT], ...]:
        """A connection has ended, by whichever side. One that is not known is ignored."""
        if connection in self._waiting:
            self._waiting.remove(connection)
        elif connection != self._active:
            return ()
        self._quiet_since = now
        if connection != self._active:
            return ()
        self._active = None
        self._server = Server.CHECKING
        return (Check(),)

    def server_ready(self) -> tuple[Action[ConnectionT], ...]:
        """The server has answered: after its start, or after a Check."""
        if self._server is not Server.ACTIVE:
            self._server = Server.IDLE
        return self._next()

    def server_lost(self, now: float) -> tuple[Action[ConnectionT], ...]:
        """The server is gone, and with it the state of its connection. Who waits goes on waiting."""
        self._server = Server.DOWN
        if self._active is None:
            return ()
        lost, self._active = self._active, None
        self._quiet_since = now
        return (Drop(lost),)

    def expire(self, now: float) -> None:
        """End a lease whose time is over. To be called at `deadline`; every other call does so too where it matters."""
        deadline = self.deadline()
        if deadline is not None and now >= deadline:
            self._holder = None

    def deadline(self) -> float | None:
        """When the lease ends if nothing happens; None while it cannot."""
        if self._holder is None or self._active is not None or self._waiting:
            return None
        return self._quiet_since + self._linger

    @property
    def view(self) -> View:
        if self._holder is None:
            return View(self._server, "", 0.0)
        return View(self._server, self._sessions[self._holder].name, self._since)

    def _next(self) -> tuple[Action[ConnectionT], ...]:
        if self._server is not Server.IDLE or not self._waiting:
            return ()
        self._active = self._waiting.popleft()
        self._server = Server.ACTIVE
        return (Connect(self._active),)
