"""Who is there: one link to each worker, one worker told from another, and the order in which a head uses them.

Each worker found has a *place*, a number that it keeps over its restarts: its tunnel and
its part of the model hang on it. A worker is known by its id *and* its certificate's
key: the same id with another key is the same worker restarted if the first one is
gone, and a second worker (a cloned machine) if it is not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from threading import Condition, Lock

from app.p2p.dialer import Candidate, Dialer, Failure, Found
from app.p2p.frames import Hello, Status
from app.p2p.identity import Peer
from app.p2p.link import Address, Greeting, Head, Link, LinkEnd

MAX_ROUTES = 8
"""Announcements kept of those that led to one worker: more than are valid at a time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """What is known of one worker at one moment."""

    place: int
    id: str
    key: str
    """Of its certificate; another one after a restart."""
    hello: Hello
    status: Status
    updated: float
    """When the status came, by the roster's clock."""
    address: Address
    """Numeric: where its link is, or was."""
    addresses: tuple[Address, ...]
    """That one, and what else led to it."""
    found: Found
    rank: int
    there: bool
    silent: bool = False
    """Lost because nothing was heard, so that its other connections may hang."""

    @property
    def name(self) -> str:
        return self.hello.name or self.id


class News(Enum):
    """What has changed."""

    FOUND = "found"
    BACK = "back"
    CHANGED = "changed"
    """Its status."""
    LOST = "lost"
    TRIED = "tried"
    """A candidate was dialled: `failures` and `settled` tell how it went."""


@dataclass(frozen=True)
class Change:
    """News, and of which worker where that is known."""

    news: News
    worker: Worker | None = None
    reason: str = ""


@dataclass(eq=False)
class _Place:
    number: int
    found: Found
    rank: int
    peer: Peer
    hello: Hello
    address: Address
    status: Status
    updated: float
    link: Link | None = None
    """None when it is lost, and when the worker was only looked at."""
    routes: dict[Hashable, Candidate] = field(default_factory=dict)
    """What has led to it."""
    ended: LinkEnd | None = None


class Roster:
    """Any thread may call. `tell` is called under a lock, so that news come in order: it must only take note."""

    def __init__(
        self,
        head: Head,
        tell: Callable[[Change], None],
        keep: Callable[[Hello], bool] = lambda _: True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """A worker of which `keep` says no is only looked at: its link is closed, and it counts as there."""
        self._head = head
        self._tell = tell
        self._keep = keep
        self._clock = clock
        self._lock = Lock()
        self._places: list[_Place] = []
        self._introduced = Condition(self._lock)
        self._keys: set[str] = set()
        self._warned: set[str] = set()
        self._dialer = Dialer(head, self._arrived, lambda: tell(Change(News.TRIED)), clock)
        self._closed = False

    def add(self, candidate: Candidate) -> None:
        """Dial `candidate`, now and whenever its worker is lost."""
        self._dialer.add(candidate)

    def remove(self, key: Hashable) -> None:
        """The announcement of a candidate is gone; a link that it led to stays."""
        self._dialer.remove(key)

    def failures(self) -> list[Failure]:
        """Candidates that led to no worker when they were dialled last, in the order in which they came."""
        return self._dialer.failures()

    def settled(self) -> bool:
        """Whether every `--peer` has been tried."""
        return self._dialer.settled()

    def workers(self) -> list[Worker]:
        """All that were found, lost ones too: by `--peer`, then name, then id."""
        with self._lock:
            found = [self._worker(place) for place in self._places]
        return sorted(found, key=lambda worker: (worker.rank, worker.name, worker.id, worker.place))

    def worker(self, place: int) -> Worker:
        """The one of that place."""
        with self._lock:
            return self._worker(self._places[place])

    def close(self, reason: str = "") -> None:
        """Say goodbye to every worker and dial no more."""
        self._dialer.close()
        with self._lock:
            self._closed = True
            links = [place.link for place in self._places if place.link is not None]
        for link in links:
            link.close(reason)

    def _arrived(self, candidate: Candidate, greeting: Greeting) -> None:
        with self._introducing(greeting.peer.key):
            link = Link(greeting, self._head)
            with self._lock:
                place, news = self._seat(candidate, link)
                followed = not self._closed and self._keep(link.hello)
                if followed:
                    self._follow(place, link)
                if news is not News.CHANGED:
                    self._warn_of_likeness(place)
                self._tell(Change(news, self._worker(place)))
        if not followed:
            link.close("seen")

    @contextmanager
    def _introducing(self, key: str) -> Iterator[None]:
        """One at a time for each worker: of two links in one session, the later one counts for it, and must for us."""
        with self._lock:
            self._introduced.wait_for(lambda: key not in self._keys)
            self._keys.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._keys.remove(key)
                self._introduced.notify_all()

    def _seat(self, candidate: Candidate, link: Link) -> tuple[_Place, News]:
        """The place of the worker behind `link`, which from now on is its only one, and what is new."""
        place = self._place_of(link)
        now = self._clock()
        if place is None:
            news = News.FOUND
            place = _Place(
                len(self._places),
                candidate.found,
                candidate.rank,
                link.peer,
                link.hello,
                link.address,
                link.status,
                now,
            )
            self._places.append(place)
        else:
            news = News.CHANGED if place.ended is None and place.peer.key == link.peer.key else News.BACK
            if place.link is not None:
                place.link.close()
            place.peer, place.hello, place.address = link.peer, link.hello, link.address
            place.status, place.updated, place.link, place.ended = link.status, now, None, None
        for other in self._places:
            other.routes.pop(candidate.key, None)
        place.routes[candidate.key] = candidate
        announced = [key for key, route in place.routes.items() if route.found is not Found.PEER]
        for key in announced[:-MAX_ROUTES]:  # each restart of a worker is announced under another name
            del place.routes[key]
        place.rank = min(place.rank, candidate.rank)
        return place, news

    def _place_of(self, link: Link) -> _Place | None:
        """The place that `link` belongs to; None when its worker was never seen."""
        alike = [place for place in self._places if place.peer.id == link.peer.id]
        by_key = [place for place in alike if place.peer.key == link.peer.key]
        # Nobody else can listen there, so the one that did has been restarted; of several lost ones that one first.
        by_address = [place for place in alike if place.address == link.address]
        lost = [place for place in alike if place.ended is not None]
        return next(iter(by_key + by_address + lost), None)

    def _follow(self, place: _Place, link: Link) -> None:
        place.link = link
        link.follow(lambda status: self._heard(place, link, status), lambda ended: self._lost(place, link, ended))

    def _heard(self, place: _Place, link: Link, status: Status) -> None:
        with self._lock:
            if place.link is link:
                place.status, place.updated = status, self._clock()
                self._tell(Change(News.CHANGED, self._worker(place)))

    def _lost(self, place: _Place, link: Link, ended: LinkEnd) -> None:
        with self._lock:
            if place.link is not link or self._closed:
                return
            place.link, place.ended = None, ended
            routes = list(place.routes)
            self._tell(Change(News.LOST, self._worker(place), ended.value))
        self._dialer.resume(routes)

    def _worker(self, place: _Place) -> Worker:
        known = [place.address, *(address for route in place.routes.values() for address in route.addresses)]
        return Worker(
            place=place.number,
            id=place.peer.id,
            key=place.peer.key,
            hello=place.hello,
            status=place.status,
            updated=place.updated,
            address=place.address,
            addresses=tuple(dict.fromkeys(known)),
            found=place.found,
            rank=place.rank,
            there=place.ended is None,
            silent=place.ended is LinkEnd.SILENT,
        )

    def _warn_of_likeness(self, place: _Place) -> None:
        """Tell, once for each id and each name, of workers that a user might take for one."""
        for other in self._places:
            if other is place or other.ended is not None:
                continue
            addresses = f"{other.address} and {place.address}"
            if other.peer.id == place.peer.id:
                self._warn_once(
                    f"the workers at {addresses} have one id, {place.peer.id}, and are kept apart: is one machine "
                    "a clone of the other? Delete the id that it keeps in its state directory, or give it --id",
                    place.peer.id,
                )
            elif other.hello.name == place.hello.name:
                name = place.hello.name
                self._warn_once(f"two workers are called {name}, those at {addresses}: give them a --name", name)

    def _warn_once(self, text: str, about: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            log.warning("%s", text)
