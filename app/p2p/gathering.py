"""Waits for the workers that a head is to use: so many, or all that are there."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from app.errors import WorkerError
from app.options import ConnectOptions
from app.p2p import protocol, signals
from app.p2p.dialer import Found
from app.p2p.events import Events
from app.p2p.frames import Hello, State
from app.p2p.link import Head
from app.p2p.listing import Chronicle, state
from app.p2p.roster import Change, News, Roster, Worker
from app.p2p.search import Search, not_found, refused
from app.p2p.signals import Arrived
from app.p2p.tunnel import Tunnels

QUIET = 1.5
"""Seconds without a new worker after which those that are there are all, when no number was given."""
ONLY_REFUSALS = 3.0
"""Seconds in which somebody else than the peers that refuse the token may turn up."""
LOOK = 0.1
"""Seconds between looks whether enough workers are there."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reach:
    """What a head has of the workers: who it is there, what happens, who is there, and the ways to them."""

    head: Head
    events: Events
    roster: Roster
    tunnels: Tunnels

    def endpoint(self, worker: Worker) -> str:
        """That of the worker's tunnel, which is opened where there is none yet. Raises WorkerError."""
        tunnel = self.tunnels.open(worker.place)
        log.info("%s leads to %s (%s)", tunnel.endpoint, worker.name, worker.address)
        return tunnel.endpoint


@contextmanager
def reach(search: Search, options: ConnectOptions) -> Iterator[Reach]:
    """Look for workers until the end. Starts threads; signals, which the caller has blocked, are events from now on."""
    events = Events()
    signals.listen(events.put)
    head = search.head()
    with (
        search.roster(head, events.put, lambda hello: wanted(options, hello)) as roster,
        closing(Tunnels(head, roster.worker, options.base_port, events.put)) as tunnels,
    ):
        yield Reach(head, events, roster, tunnels)


class Stopped(Exception):
    """The user wants an end before there is anything to end."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number


def wanted(options: ConnectOptions, hello: Hello) -> bool:
    """What --only and --exclude say of a worker."""
    names = {hello.name, hello.id}
    return not names & set(options.exclude) and (not options.only or bool(names & set(options.only)))


def is_ready(worker: Worker) -> bool:
    """Whether nobody has it."""
    return worker.status.state is State.READY


class Gathering:
    """Belongs to the main thread, like the events, of which it logs what is new of workers."""

    def __init__(self, options: ConnectOptions, roster: Roster, events: Events, client: str | None = None) -> None:
        """`client`: the RPC protocol of the llama.cpp that will use them, where it is known; others are left out."""
        self._options = options
        self._roster = roster
        self._events = events
        self._client = client
        self._refused: set[tuple[int, str]] = set()
        self._chronicle = Chronicle()

    def next(self, timeout: float | None) -> object:
        """The next event, after its line in the log; None when there is none in time."""
        event = self._events.next(timeout)
        if isinstance(event, Change) and event.worker is not None and self.wants(event.worker):
            sentence = self._chronicle.sentence(event)
            if sentence:
                log.log(logging.WARNING if event.news is News.LOST else logging.INFO, "%s", sentence)
        return event

    def rest(self, seconds: float) -> None:
        """Let so much time pass, and log what comes. Raises Stopped."""
        deadline = time.monotonic() + seconds
        while (event := self.next(deadline - time.monotonic())) is not None:
            if isinstance(event, Arrived) and event.ends:
                raise Stopped(event.number)

    def workers(self, usable: Callable[[Worker], bool] = is_ready, *, patient: bool = False) -> list[Worker]:
        """Those to begin with, in order. Raises Stopped.

        When there are too few in time it raises WorkerError; the `patient` caller gets those that there
        are instead, as soon as there is one.
        """
        started = newest = time.monotonic()
        known: set[tuple[int, bool]] = set()
        told = False
        while True:
            self.rest(LOOK)
            there = [worker for worker in self._roster.workers() if worker.there and self.wants(worker)]
            odd = self._odd(there)
            free = [worker for worker in there if usable(worker) and worker not in odd]
            now = time.monotonic()
            seen = {(worker.place, worker in free) for worker in there}
            if seen - known:
                known, newest = known | seen, now
            late = now - started >= self._options.timeout
            if self._enough(there, free, late or now - newest >= QUIET):
                return free[: self._options.workers]
            if patient:
                if late and not told:
                    told = True
                    then = "going on with those" if free else "waiting until one is back"
                    log.warning("%s; %s", self._too_few(there, free).message, then)
                if late and free:
                    return free
                continue
            only_refusals = None if self._anybody() else refused(self._roster.failures())
            # Anybody can announce what refuses: that must not end a search before its time.
            named = all(failure.candidate.found is Found.PEER for failure in self._roster.failures())
            if only_refusals and (late or (named and now - started >= ONLY_REFUSALS)):
                raise only_refusals
            if late:
                raise self._too_few(there, free)

    def wants(self, worker: Worker) -> bool:
        """Whether the user wants this one."""
        return wanted(self._options, worker.hello)

    def _odd(self, there: Sequence[Worker]) -> list[Worker]:
        """Those that the llama.cpp would refuse, each told once."""
        answered = [worker for worker in there if worker.status.rpc]
        odd = [] if self._client is None else protocol.mismatched(answered, self._client)
        for worker in odd:
            if (told := (worker.place, worker.status.rpc)) not in self._refused:
                self._refused.add(told)
                log.warning("%s is left out: it %s", worker.name, self._why(worker))
        return odd

    def _why(self, worker: Worker) -> str:
        return f"speaks RPC protocol {worker.status.rpc}, the llama.cpp of this file {self._client}"

    def _anybody(self) -> bool:
        return any(worker.there for worker in self._roster.workers())

    def _enough(self, there: Sequence[Worker], free: Sequence[Worker], quiet: bool) -> bool:
        if self._options.workers is not None:
            return len(free) >= self._options.workers
        # One that is looked at after somebody's use is free in a moment.
        return bool(free) and quiet and all(worker.status.state is not State.CHECKING for worker in there)

    def _too_few(self, there: Iterable[Worker], free: Sequence[Worker]) -> WorkerError:
        number = self._options.workers
        there = list(there)
        what = f"only {len(free)} of {number} workers" if free else "no free worker" if there else "no worker"
        odd = self._odd(there)
        causes = [
            f"{worker.name} {self._why(worker) if worker in odd else f'is {state(worker, time.monotonic())}'}"
            for worker in there
            if worker not in free
        ]
        left_out = [worker.name for worker in self._roster.workers() if not self.wants(worker)]
        hint = f"--only and --exclude leave out {', '.join(left_out)}" if left_out else ""
        return not_found(f"{what} after {self._options.timeout:g} s", causes, self._roster.failures(), hint)
