"""One run of `connect` or `bench`: waits for workers, opens their tunnels, follows what becomes of them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from app.console import live_table
from app.errors import ExitCode
from app.options import ConnectOptions
from app.p2p import protocol
from app.p2p.command import Command
from app.p2p.gathering import Gathering, Reach, Stopped, is_ready
from app.p2p.listing import Traffics, TunnelView
from app.p2p.roster import Change, Worker
from app.p2p.signals import Arrived
from app.p2p.tunnel import Broke

REDRAW = 1.0
"""Seconds between two states of the live table."""
log = logging.getLogger(__name__)


class Session:
    """Belongs to the main thread."""

    def __init__(
        self,
        options: ConnectOptions,
        reached: Reach,
        command: Command | None,
        client: str | None = None,
    ) -> None:
        """`client`: the RPC protocol that `command` speaks, where that is known."""
        self._options = options
        self._roster = reached.roster
        self._tunnels = reached.tunnels
        self._endpoint = reached.endpoint
        self._command = command
        self._client = client
        self._gathering = Gathering(options, reached.roster, reached.events, client)
        self._rpc: list[str] = []
        """Endpoints, as they were given to llama.cpp."""
        self._version = ""
        """Of the RPC protocol, of the workers that were given to it."""
        self._odd: set[tuple[int, str]] = set()
        self._told_how_to_add = False
        self._told_of_the_end = False

    def run(self) -> int:
        """The exit status of the command, or ours. Raises WorkerError."""
        try:
            chosen = self._gathering.workers()
        except Stopped as stopped:
            return 128 + stopped.number
        self._version = protocol.common(chosen)
        for worker in chosen:
            self._open(worker)
        rpc = ",".join(self._rpc)
        if self._command is None:
            print(rpc, flush=True)
        else:
            if self._client is None:
                self._say_what_it_needs(chosen)
            self._command.run(rpc)
        return self._serve()

    def _say_what_it_needs(self, chosen: Sequence[Worker]) -> None:
        """CMD's own version cannot be read from it without running it; it ends itself when it is another."""
        each = f" ({protocol.named(chosen)})" if len({worker.status.rpc for worker in chosen}) > 1 else ""
        log.info(
            "the workers speak RPC protocol %s%s: the command must be of a llama.cpp that does", self._version, each
        )

    def _serve(self) -> int:
        with self._drawing() as draw:
            while True:
                draw()
                if self._command is not None and (status := self._command.status()) is not None:
                    return status
                event = self._gathering.next(REDRAW if self._draws else None)
                if isinstance(event, Arrived) and event.ends:
                    if self._command is None:
                        return ExitCode.OK
                    self._command.pass_on(event)
                elif isinstance(event, Broke):
                    self._say_what_that_does()
                elif isinstance(event, Change) and event.worker is not None:
                    self._adapt(event.worker)

    def _say_what_that_does(self) -> None:
        if not self._told_of_the_end:
            self._told_of_the_end = True
            log.warning(
                "llama.cpp ends (GGML_ABORT) when it loses one of its workers; "
                "start it again then: the ports of the tunnels stay the same"
            )

    def _adapt(self, worker: Worker) -> None:
        """Bring the tunnels in step with what has become of a worker."""
        self._tunnels.cut_silent(worker)
        if self._client is not None:  # a carried program asks for no more than it has
            return
        if not (worker.there and self._gathering.wants(worker) and is_ready(worker)):
            return
        if not protocol.together(worker.status.rpc, self._version):
            if (worker.place, worker.status.rpc) not in self._odd:
                self._odd.add((worker.place, worker.status.rpc))
                log.warning(
                    "%s speaks RPC %s, the others %s: it cannot be used together with them",
                    worker.name,
                    worker.status.rpc,
                    self._version,
                )
        elif self._tunnels.get(worker.place) is None:
            self._open(worker)
            if self._options.workers is None and not self._told_how_to_add:
                self._told_how_to_add = True
                log.info(
                    "llama.cpp takes its workers when it starts: to use %s too, start it again with --rpc %s",
                    worker.name,
                    ",".join(self._rpc),
                )

    def _open(self, worker: Worker) -> None:
        self._rpc.append(self._endpoint(worker))

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
        for worker in filter(self._gathering.wants, self._roster.workers()):
            tunnel = self._tunnels.get(worker.place)
            rows.append((worker, TunnelView(tunnel.port, tunnel.traffic) if tunnel else None))
        return rows
