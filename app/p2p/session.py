"""One run of `connect`: waits for workers, opens their tunnels, follows what becomes of them."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue

from app.console import live_table
from app.errors import ExitCode, WorkerError
from app.options import ConnectOptions
from app.p2p.command import Command
from app.p2p.dialer import Found
from app.p2p.frames import Hello, State
from app.p2p.listing import Chronicle, Traffics, TunnelView, state
from app.p2p.roster import Change, News, Roster, Worker
from app.p2p.search import not_found, refused
from app.p2p.signals import ENDING, Arrived
from app.p2p.tunnel import Tunnels

QUIET = 1.5
"""Seconds without a new worker after which those that are there are all, when no number was given."""
ONLY_REFUSALS = 3.0
"""Seconds in which somebody else than the peers that refuse the token may turn up."""
REDRAW = 1.0
"""Seconds between two states of the live table."""
LOOK = 0.1
"""Seconds between looks whether enough workers are there."""

log = logging.getLogger(__name__)


class Events(SimpleQueue[Change | Arrived]):
    """All that the main thread waits for."""

    def next(self, timeout: float | None) -> Change | Arrived | None:
        """The oldest event; None when there is none within `timeout` seconds."""
        try:
            return self.get(timeout=timeout)
        except Empty:
            return None


def wanted(options: ConnectOptions, hello: Hello) -> bool:
    """What --only and --exclude say of a worker."""
    names = {hello.name, hello.id}
    return not names & set(options.exclude) and (not options.only or bool(names & set(options.only)))


class _Stopped(Exception):
    """The user wants an end before there is anything to end."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number


class Session:
    """Belongs to the main thread."""

    def __init__(
        self, options: ConnectOptions, roster: Roster, tunnels: Tunnels, events: Events, command: Command | None
    ) -> None:
        self._options = options
        self._roster = roster
        self._tunnels = tunnels
        self._events = events
        self._command = command
        self._chronicle = Chronicle()
        self._rpc: list[str] = []
        """Endpoints, as they were given to llama.cpp."""
        self._version = ""
        """Of the RPC protocol, of the workers that were given to it."""
        self._odd: set[tuple[int, str]] = set()
        self._told_how_to_add = False

    def run(self) -> int:
        """The exit status of the command, or ours. Raises WorkerError."""
        try:
            chosen = self._gather()
        except _Stopped as stopped:
            return 128 + stopped.number
        self._version = _common_version(chosen)
        for worker in chosen:
            self._open(worker)
        rpc = ",".join(self._rpc)
        if self._command is None:
            print(rpc, flush=True)
        else:
            self._command.run(rpc)
        return self._serve()

    def _gather(self) -> list[Worker]:
        """The workers to begin with, in order. Raises _Stopped, and WorkerError when there are too few in time."""
        started = newest = time.monotonic()
        known: set[tuple[int, bool]] = set()
        while True:
            self._note_all(LOOK)
            there = [worker for worker in self._roster.workers() if worker.there and self._wants(worker)]
            free = [worker for worker in there if worker.status.state is State.READY]
            now = time.monotonic()
            seen = {(worker.place, worker in free) for worker in there}
            if seen - known:
                known, newest = known | seen, now
            late = now - started >= self._options.timeout
            if self._enough(there, free, late or now - newest >= QUIET):
                return free[: self._options.workers]
            anybody = any(worker.there for worker in self._roster.workers())
            only_refusals = None if anybody else refused(self._roster.failures())
            # Anybody can announce what refuses: that must not end a search before its time.
            named = all(failure.candidate.found is Found.PEER for failure in self._roster.failures())
            if only_refusals and (late or (named and now - started >= ONLY_REFUSALS)):
                raise only_refusals
            if late:
                raise self._too_few(there, free)

    def _note_all(self, timeout: float) -> None:
        """Wait for events, and log all that have come. Raises _Stopped."""
        while (event := self._next(timeout)) is not None:
            timeout = 0.0
            if isinstance(event, Arrived) and event.number in ENDING:
                raise _Stopped(event.number)

    def _enough(self, there: Sequence[Worker], free: Sequence[Worker], quiet: bool) -> bool:
        if self._options.workers is not None:
            return len(free) >= self._options.workers
        # One that is looked at after somebody's use is free in a moment.
        return bool(free) and quiet and all(worker.status.state is not State.CHECKING for worker in there)

    def _too_few(self, there: Sequence[Worker], free: Sequence[Worker]) -> WorkerError:
        wanted = self._options.workers
        what = f"only {len(free)} of {wanted} workers" if free else "no free worker" if there else "no worker"
        causes = [f"{worker.name} is {state(worker, time.monotonic())}" for worker in there if worker not in free]
        left_out = [worker.name for worker in self._roster.workers() if not self._wants(worker)]
        hint = f"--only and --exclude leave out {', '.join(left_out)}" if left_out else ""
        return not_found(f"{what} after {self._options.timeout:g} s", causes, self._roster.failures(), hint)

    def _serve(self) -> int:
        with self._drawing() as draw:
            while True:
                draw()
                if self._command is not None and (status := self._command.status()) is not None:
                    return status
                event = self._next(REDRAW if self._draws else None)
                if isinstance(event, Arrived) and event.number in ENDING:
                    if self._command is None:
                        return ExitCode.OK
                    self._command.pass_on(event)
                elif isinstance(event, Change) and event.worker is not None:
                    self._adapt(event.worker)

    def _next(self, timeout: float | None) -> Change | Arrived | None:
        """The next event, after its line in the log; None when there is none in time."""
        event = self._events.next(timeout)
        if isinstance(event, Change) and event.worker is not None and self._wants(event.worker):
            sentence = self._chronicle.sentence(event)
            if sentence:
                log.log(logging.WARNING if event.news is News.LOST else logging.INFO, "%s", sentence)
        return event

    def _adapt(self, worker: Worker) -> None:
        """Bring the tunnels in step with what has become of a worker."""
        tunnel = self._tunnels.get(worker.place)
        if tunnel is not None and worker.silent:
            tunnel.cut()
        if not worker.there or not self._wants(worker) or worker.status.state is not State.READY:
            return
        if _major(worker.status.rpc) != _major(self._version):
            if (worker.place, worker.status.rpc) not in self._odd:
                self._odd.add((worker.place, worker.status.rpc))
                log.warning(
                    "%s speaks RPC %s, the others %s: it cannot be used together with them",
                    worker.name,
                    worker.status.rpc,
                    self._version,
                )
        elif tunnel is None:
            self._open(worker)
            if self._options.workers is None and not self._told_how_to_add:
                self._told_how_to_add = True
                log.info(
                    "llama.cpp takes its workers when it starts: to use %s too, start it again with --rpc %s",
                    worker.name,
                    ",".join(self._rpc),
                )

    def _open(self, worker: Worker) -> None:
        tunnel = self._tunnels.open(worker.place)
        self._rpc.append(tunnel.endpoint)
        log.info("%s leads to %s (%s)", tunnel.endpoint, worker.name, worker.address)

    @property
    def _draws(self) -> bool:
        """With a command the terminal is the command's."""
        return self._command is None and sys.stderr.isatty()

    @contextmanager
    def _drawing(self) -> Iterator[Callable[[], None]]:
        if not self._draws:
            yield lambda: None
            return
        traffics = Traffics()
        with live_table(sys.stderr) as show:
            yield lambda: show(traffics.table(self._rows(), time.monotonic()))

    def _rows(self) -> list[tuple[Worker, TunnelView | None]]:
        rows: list[tuple[Worker, TunnelView | None]] = []
        for worker in filter(self._wants, self._roster.workers()):
            tunnel = self._tunnels.get(worker.place)
            rows.append((worker, TunnelView(tunnel.port, tunnel.traffic) if tunnel else None))
        return rows

    def _wants(self, worker: Worker) -> bool:
        return wanted(self._options, worker.hello)


def _common_version(workers: Sequence[Worker]) -> str:
    """The RPC version of all of them. Raises WorkerError when llama.cpp could not use them together.

    It refuses servers of another major version than its own. Its own cannot be
    read from a llama.cpp program without running it, so CMD is not compared.
    """
    if len({_major(worker.status.rpc) for worker in workers}) > 1:
        versions = ", ".join(f"{worker.name} {worker.status.rpc}" for worker in workers)
        raise WorkerError(
            f"the workers speak different RPC protocols: {versions}",
            "give all machines the same version of `worker`, or leave some out with --exclude NAME",
        )
    return workers[0].status.rpc


def _major(version: str) -> str:
    return version.partition(".")[0]
