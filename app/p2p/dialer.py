"""Dials candidates until each has led to a worker: few at a time, again and again, and no longer once it has."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from threading import Condition, Thread

from app.p2p.link import Address, Greeting, Head, LinkError, Problem, greet

MAX_DIALS = 8
"""Dials at once: anybody on the LAN can announce any number of workers."""
FIRST_DELAY = 1.0
"""Seconds until a candidate is dialled again; each time twice as long ..."""
MAX_DELAY = 10.0
"""... up to this, for as long as it is known. A link that lasted longer was no failure."""
MOVED_DELAY = 3.0
"""Seconds at least between two dials of a worker that is there and is said to have moved."""
FAREWELL = 60.0
"""Seconds that a worker is dialled whose link is lost and whose announcement is gone: mDNS alone may have failed."""
SLOW = 1.0
"""Seconds after which a turn of a candidate ends: the others wait for their dials."""
MAX_WARNINGS = 20
"""Announced candidates whose failure is worth a warning; the rest is for the debug log."""
UNRANKED = 1 << 30
"""Behind every `--peer`."""

_DOUBLINGS = 8
# Of what went wrong at a candidate's addresses, the last one of these is told.
_TELLING = (Problem.UNREACHABLE, Problem.NOT_A_WORKER, Problem.DECLINED, Problem.REFUSED)

log = logging.getLogger(__name__)


class Found(Enum):
    """What led to a worker."""

    PEER = "peer"
    MDNS = "mdns"


@dataclass(frozen=True)
class Candidate:
    """A hint where a worker may be; who is there is known only when TLS has proved it."""

    key: Hashable
    """Names it: adding the key again changes what is known."""
    addresses: tuple[Address, ...]
    """All of one worker; tried in this order."""
    found: Found
    rank: int = UNRANKED
    """Its place among the `--peer`s."""
    worker_id: str = ""
    """What the announcement claims: when another worker answers, the next address is tried."""


@dataclass(frozen=True)
class Failure:
    """A candidate that was dialled, and why that led to no worker."""

    candidate: Candidate
    error: LinkError


@dataclass(eq=False)
class _Route:
    """A candidate and how dialling it goes."""

    candidate: Candidate
    due: float = -math.inf
    dialled: float = -math.inf
    """When that began last."""
    until: float = math.inf
    """When to forget it: its announcement is gone."""
    dialing: bool = False
    tried: bool = False
    failures: int = 0
    error: LinkError | None = None
    rests_since: float | None = None
    """It has led to a worker that is still there."""
    lost: bool = False
    """That worker was lost before the dial was over."""


class Dialer:
    """Any thread may call. The two callbacks are made by its own threads, holding no lock of it."""

    def __init__(
        self,
        head: Head,
        arrived: Callable[[Candidate, Greeting], None],
        tried: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`arrived` takes over the connection or raises LinkError; then its candidate rests until `resume`.
        `tried` says that `failures` or `settled` has changed.
        """
        self._head = head
        self._arrived = arrived
        self._tried = tried
        self._clock = clock
        self._changed = Condition()
        self._routes: dict[Hashable, _Route] = {}
        self._threads: list[Thread] = []
        self._warnings = 0
        self._closed = False

    def add(self, candidate: Candidate) -> None:
        """Dial `candidate`, now and whenever its worker is lost."""
        with self._changed:
            route = self._routes.get(candidate.key)
            if route is None:
                route = self._routes[candidate.key] = _Route(candidate)
            # Anybody can say another address for it, again and again: that is not to cost its worker a dial each time.
            pause = MOVED_DELAY if route.tried and route.error is None else FIRST_DELAY
            if not set(route.candidate.addresses) <= set(candidate.addresses):
                route.rests_since = None  # it may have moved
            route.candidate, route.until, route.failures = candidate, math.inf, 0
            route.due = max(self._clock(), route.dialled + pause)
            if len(self._threads) < MAX_DIALS:
                self._threads.append(Thread(target=self._run, name="dial", daemon=True))
                self._threads[-1].start()
            self._changed.notify()

    def remove(self, key: Hashable) -> None:
        """The announcement is gone. What it led to stays: anybody can send a goodbye."""
        with self._changed:
            route = self._routes.get(key)
            if route is not None and (route.dialing or route.rests_since is not None):
                route.until = self._clock() + FAREWELL
            elif route is not None:
                del self._routes[key]

    def resume(self, keys: Iterable[Hashable]) -> None:
        """The worker to which these candidates have led is lost."""
        with self._changed:
            now = self._clock()
            for route in (self._routes[key] for key in keys if key in self._routes):
                if route.rests_since is None:
                    route.lost = route.dialing
                    route.due = min(route.due, max(now, route.dialled + FIRST_DELAY))
                    continue
                lasted, route.rests_since = now - route.rests_since, None
                if lasted >= MAX_DELAY:
                    route.failures, route.due = 0, now
                else:
                    self._postpone(route)
                if route.until != math.inf:
                    route.until = now + FAREWELL
            self._changed.notify_all()

    def failures(self) -> list[Failure]:
        """Candidates that led to no worker when they were dialled last, in the order in which they came."""
        with self._changed:
            return [Failure(route.candidate, route.error) for route in self._routes.values() if route.error is not None]

    def settled(self) -> bool:
        """Whether every `--peer` has been tried."""
        with self._changed:
            return all(route.tried for route in self._routes.values() if route.candidate.found is Found.PEER)

    def close(self) -> None:
        """Dial no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while (route := self._next()) is not None:
            candidate = route.candidate
            try:
                self._arrived(candidate, self._greet(candidate, route.failures))
            except LinkError as error:
                self._note(route, error)
            except Exception:  # one candidate's trouble must not end the others' thread
                log.exception("dialling %s broke", candidate.key)
                self._note(route, LinkError(Problem.UNREACHABLE, "dialling it broke"))
            else:
                self._note(route, None)

    def _next(self) -> _Route | None:
        """Wait for a route that is due; None at the end. Static peers first, then what has failed least."""
        with self._changed:
            while not self._closed:
                now = self._clock()
                free = [route for route in self._routes.values() if not route.dialing and route.rests_since is None]
                for route in [route for route in free if route.until <= now]:
                    free.remove(route)
                    del self._routes[route.candidate.key]
                due = [route for route in free if route.due <= now]
                if due:
                    route = min(due, key=lambda route: (route.candidate.rank, route.failures, route.due))
                    route.dialing, route.lost, route.dialled = True, False, now
                    return route
                self._changed.wait(min((route.due - now for route in free), default=None))
            return None

    def _greet(self, candidate: Candidate, turn: int) -> Greeting:
        """The worker that `candidate` means; where only another one answers, that. Raises LinkError.

        Anybody can announce sixteen addresses that answer nothing: a turn ends with the
        first slow one, and the next turn begins with the address behind it.
        """
        first = turn % len(candidate.addresses)
        started = self._clock()
        errors: list[LinkError] = []
        other: Greeting | None = None
        for address in candidate.addresses[first:] + candidate.addresses[:first]:
            if errors and self._clock() - started > SLOW:
                break
            try:
                greeting = greet(address, self._head)
            except LinkError as error:
                errors.append(error)
                continue
            if candidate.worker_id in ("", greeting.peer.id):
                if other is not None:
                    other.close()
                return greeting
            if other is None:
                other = greeting
            else:
                greeting.close()
        if other is not None:
            return other
        raise max(errors, key=lambda error: _TELLING.index(error.problem))

    def _note(self, route: _Route, error: LinkError | None) -> None:
        """How the dial ended."""
        with self._changed:
            news = not route.tried or str(error) != str(route.error)
            if news and error is not None:
                self._complain(route.candidate, error)
            route.dialing, route.tried, route.error = False, True, error
            if error is None and not route.lost:
                route.rests_since = self._clock()
            else:
                self._postpone(route)
            self._changed.notify()
        if news:
            self._tried()

    def _postpone(self, route: _Route) -> None:
        route.due = self._clock() + min(FIRST_DELAY * 2 ** min(route.failures, _DOUBLINGS), MAX_DELAY)
        route.failures += 1

    def _complain(self, candidate: Candidate, error: LinkError) -> None:
        announced = candidate.found is Found.MDNS
        self._warnings += announced
        level = logging.DEBUG if announced and self._warnings > MAX_WARNINGS else logging.WARNING
        log.log(level, "%s %s", " or ".join(map(str, candidate.addresses)), error)
