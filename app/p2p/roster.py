"""Who is there: one link to each worker, one worker told from another, and the order in which a head uses them.

Each worker found has a *place*, a number that it keeps over its restarts: its tunnel and
its part of the model hang on it. A worker is known by its id *and* its certificate's
key: the same id with another key is the same worker restarted if the first one is
gone, and a second worker (a cloned machine) if it is not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from enum import Enum
from threading import RLock

from app.p2p.dialer import Candidate, Dialer, Failure, Found
from app.p2p.frames import Hello, Status
from app.p2p.link import Address, Ended, Head, Link

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
    FAILED = "failed"
    """A candidate could not be used: `failures` tells."""


@dataclass(frozen=True)
class Change:
    """News, and of which worker where that is known."""

    news: News
    worker: Worker | None = None
    reason: str = ""


@dataclass(eq=False)
class _Place:
    number: int
    link: Link
    status: Status
    updated: float
    found: Found
    rank: int
    routes: dict[Hashable, Candidate] = field(default_factory=dict)
    """What has led to it."""
    ended: Ended | None = None


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
        self._tell = tell
        self._keep = keep
        self._clock = clock
        self._lock = RLock()
        self._places: list[_Place] = []
        self._warned: set[str] = set()
        self._dialer = Dialer(head, self._arrived, lambda: tell(Change(News.FAILED)), clock)
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
            links = [place.link for place in self._places if place.ended is None]
        for link in links:
            link.close(reason)

    def _arrived(self, candidate: Candidate, link: Link) -> None:
        spare: Link | None = link
        with self._lock:
            place = self._place_of(link)
            if place is None:
                place = _Place(len(self._places), link, link.status, self._clock(), candidate.found, candidate.rank)
                self._places.append(place)
                news: News | None = News.FOUND
            elif place.ended is None and place.link.peer.key == link.peer.key:
                news = None  # another way to the same process
            else:
                news = News.BACK
                spare = place.link  # when it is not closed yet, nobody is behind it any more
                place.link, place.status, place.updated, place.ended = link, link.status, self._clock(), None
            self._lead(candidate, place)
            if news is not None:
                self._warn_of_likeness(place)
                self._tell(Change(news, self._worker(place)))
                if self._keep(link.hello) and not self._closed:
                    self._follow(place, link)
                    spare = None if spare is link else spare
        if spare is not None:
            spare.close()
