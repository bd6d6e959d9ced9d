"""One `serve`: llama-server on the workers that are there, and again on those that are left when one is lost."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from app.errors import ExitCode, WorkerError
from app.launch import tell_status
from app.p2p import systemd
from app.p2p.command import RPC_VARIABLE
from app.p2p.frames import State
from app.p2p.gathering import Gathering, Reach, Stopped, is_ready
from app.p2p.llama_server_log import HERE, Loaded, PassedOn
from app.p2p.restarts import Restarts
from app.p2p.roster import Change, Worker
from app.p2p.signals import Arrived
from app.p2p.starter import Ended, Starter
from app.p2p.tunnel import Broke

DOOMED = 3.0
"""Seconds in which llama-server ends by itself once a worker is lost; an idle one does not notice, and can answer
nothing more."""
STOP_LIMIT = 10.0
"""Seconds that llama-server has to finish after SIGTERM."""
LATE_NEWS = 1.0
"""Seconds in which it turns out whether a worker was lost, when llama-server was faster to end than we to hear."""
PATIENCE = 60.0
"""Seconds of loading after which, and again after each of which, the user is told: the wait may be for a worker."""
OUTPUT_LIMIT = 2.0
"""Seconds for the end of its log to come through the pipe."""

log = logging.getLogger(__name__)


@dataclass
class _Run:
    """What is known of one run of llama-server."""

    workers: list[str]
    """Names of those that it was given."""
    reminder: float | None
    """When the user is told that it is not ready, by `time.monotonic`; None once it is, or is to end."""
    reminders: int = 0
    """So far."""
    deadline: float | None = None
    """When it is ended by force, by the same clock."""
    lost: list[str] = field(default_factory=list)
    """Names of the workers whose tunnels broke."""
    status: int | None = None

    def left(self) -> float | None:
        """Seconds until one of the two; None where nothing is due."""
        due = self.reminder if self.deadline is None else self.deadline
        return None if due is None else due - time.monotonic()

    def end_by(self, deadline: float) -> None:
        """It is to end by itself until then."""
        self.reminder, self.deadline = None, deadline


class Serving:
    """Belongs to the main thread."""

    def __init__(
        self,
        gathering: Gathering,
        reached: Reach,
        starter: Starter,
        restarts: Restarts,
        check: Callable[[], None],
    ) -> None:
        """`check` raises where no start may be made."""
        self._gathering = gathering
        self._tunnels = reached.tunnels
        self._endpoint = reached.endpoint
        self._worker = reached.roster.worker
        self._events = reached.events
        self._starter = starter
        self._restarts = restarts
        self._head = reached.head.name
        self._check = check
        self._places: list[int] = []
        """Of the workers that llama-server has had, in the order in which it is told of them."""
        self._stopping = False

    def run(self) -> int:
        """llama-server's exit status; 0 where the user ended it. Raises WorkerError."""
        try:
            workers = self._gathering.workers()
            while True:
                run = self._serve(workers)
                if self._stopping:
                    return ExitCode.OK
                if (delay := self._after(run)) is None:
                    assert run.status is not None
                    return run.status if run.status >= 0 else 128 - run.status
                self._gathering.rest(delay)
                workers = self._gathering.workers(self._is_usable, patient=True)
        except Stopped:
            return ExitCode.OK

    def _serve(self, workers: list[Worker]) -> _Run:
        """One run, to its end."""
        self._check()
        endpoints = ",".join(map(self._endpoint, self._in_order(workers)))
        output = PassedOn(self._starter.start({RPC_VARIABLE: endpoints}, self._events.put), self._events.put)
        run = _Run([worker.name for worker in workers], time.monotonic() + PATIENCE)
        while run.status is None:
            event = self._gathering.next(run.left())
            if event is not None:
                self._take(run, event)
            elif run.reminder is not None:
                self._remind(run)
            else:
                log.info("llama-server has not ended by itself: it is killed")
                self._starter.signal(signal.SIGKILL)
                run.deadline = None
        output.wait_for_end(OUTPUT_LIMIT)
        if run.status and not run.lost and not self._stopping:
            self._hear_late(run)
        return run

    def _hear_late(self, run: _Run) -> None:
        deadline = time.monotonic() + LATE_NEWS
        while not run.lost and (event := self._gathering.next(deadline - time.monotonic())) is not None:
            self._take(run, event)

    def _remind(self, run: _Run) -> None:
        """A load may take long, and may wait for ever for a worker that says nothing."""
        run.reminders += 1
        run.reminder = time.monotonic() + PATIENCE
        who, seconds = " and ".join(run.workers), run.reminders * PATIENCE
        log.warning("llama-server is not ready after %g s; it still loads, or waits for %s", seconds, who)

    def _take(self, run: _Run, event: object) -> None:
        """What has happened while llama-server runs."""
        if isinstance(event, Ended):
            if event.status is None:
                raise WorkerError("the process that starts llama-server was ended", "the system log may tell by whom")
            run.status = event.status
        elif isinstance(event, Loaded):
            run.reminder = None
            self._restarts.ready()
            self._show(event)
            systemd.notify(os.environ, systemd.READY, systemd.status(f"llama-server is ready on {event.url}"))
        elif isinstance(event, Broke):
            self._lose(run, self._worker(event.place).name)
        elif isinstance(event, Change) and event.worker is not None:
            self._tunnels.cut_silent(event.worker)
        elif isinstance(event, Arrived) and event.ends:
            self._stop(run, event)

    def _lose(self, run: _Run, name: str) -> None:
        if name in run.lost or self._stopping:
            return
        run.lost.append(name)
        log.warning("%s was lost: llama-server cannot go on without it", name)
        systemd.notify(os.environ, systemd.status(f"{name} was lost"))
        if run.deadline is None:
            run.end_by(time.monotonic() + DOOMED)

    def _stop(self, run: _Run, arrived: Arrived) -> None:
        """The user wants an end; the second time at once."""
        if self._stopping:
            self._starter.signal(signal.SIGKILL)
            return
        self._stopping = True
        systemd.notify(os.environ, systemd.STOPPING)
        run.end_by(time.monotonic() + STOP_LIMIT)
        if not arrived.by_terminal:  # else it has had its own
            self._starter.signal(signal.SIGTERM)

    def _after(self, run: _Run) -> float | None:
        """Seconds until the next start, None for none; said in the log."""
        assert run.status is not None
        delay = self._restarts.ended(run.status, lost_worker=bool(run.lost))
        cause = f", having lost {' and '.join(run.lost)}" if run.lost else ""
        level = logging.INFO if run.status == 0 else logging.WARNING
        then = "" if delay is None else f"; it is started again in {delay:g} s"
        log.log(level, "llama-server %s%s%s", tell_status(run.status), cause, then)
        return delay

    def _is_usable(self, worker: Worker) -> bool:
        """Nobody has it, or we still do: a worker keeps a head's place for a while after its last connection."""
        ours = worker.status.state is State.BUSY and worker.status.holder == self._head
        return is_ready(worker) or (ours and worker.place in self._places)

    def _in_order(self, workers: Collection[Worker]) -> list[Worker]:
        """As they were, so that --tensor-split keeps its meaning; new ones last."""
        self._places += [worker.place for worker in workers if worker.place not in self._places]
        return sorted(workers, key=lambda worker: self._places.index(worker.place))

    def _show(self, ready: Loaded) -> None:
        """Where it listens, and who holds how much, to stdout: llama-server itself writes nothing there."""
        workers = [self._worker(place) for place in self._places]
        names = {self._tunnels.open(worker.place).endpoint: f"{worker.name} ({worker.address})" for worker in workers}
        names[HERE] = "this machine"
        rows = [(name, ready.buffers[place]) for place, name in names.items() if place in ready.buffers]
        width = max((len(name) for name, _ in rows), default=0)
        lines = [f"  {name:<{width}}  {mib:.2f} MiB of the model" for name, mib in rows]
        print(f"llama-server is ready on {ready.url}", *lines, sep="\n", flush=True)
