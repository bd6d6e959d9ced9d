"""A loopback port for each worker: what a local program sends there goes to the worker's server, and back."""

from __future__ import annotations

import errno
import logging
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Lock, Thread

from app.errors import WorkerError
from app.p2p.channel import ChannelError
from app.p2p.conversation import Conversation, PeerClosed
from app.p2p.frames import Busy, Data, Ok, PeerError, Refused
from app.p2p.link import Head, LinkError, Problem, greet
from app.p2p.local_client import refusal
from app.p2p.pump import PumpEnd, Traffic, pump
from app.p2p.roster import Worker

MAX_CONNECTIONS = 64
"""Local connections at once through one tunnel. A worker lets 33 of a session stand; llama.cpp has one or two."""
LOOK_INTERVAL = 0.5
"""Seconds between looks whether a local program still waits. The worker may let it wait for minutes."""
MAX_PORTS = 1000
"""Ports tried, in order, for one tunnel."""
_BACKLOG = 16
_ACCEPT_PAUSE = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Broke:
    """A tunnel to the worker of that place has broken."""

    place: int


class Tunnels:
    """The tunnels of one head, in the order in which they were opened. Only the main thread opens and closes them."""

    def __init__(
        self,
        head: Head,
        worker: Callable[[int], Worker],
        base_port: int,
        tell: Callable[[Broke], None],
    ) -> None:
        """`worker` tells, from any thread, what is known of the worker of a place. `tell` is called from any
        thread.
        """
        self._head = head
        self._worker = worker
        self._next_port = base_port
        self._tunnels: dict[int, Tunnel] = {}
        self._tell = tell

    def open(self, place: int) -> Tunnel:
        """The tunnel of that place: it keeps its port while the worker comes and goes. Raises WorkerError."""
        if place not in self._tunnels:
            listener = self._listen()
            self._tunnels[place] = Tunnel(
                listener, self._head, lambda: self._worker(place), lambda: self._tell(Broke(place))
            )
        return self._tunnels[place]

    def get(self, place: int) -> Tunnel | None:
        """The tunnel of that place, if there is one."""
        return self._tunnels.get(place)

    def cut_silent(self, worker: Worker) -> None:
        """Free those connections to it that TCP would still hold, where it is silent."""
        tunnel = self._tunnels.get(worker.place)
        if tunnel is not None and worker.silent:
            tunnel.cut()

    def close(self) -> None:
        """End every connection and free the ports."""
        for tunnel in self._tunnels.values():
            tunnel.close()

    def _listen(self) -> socket.socket:
        for port in range(self._next_port, min(self._next_port + MAX_PORTS, 1 << 16)):
            try:
                listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                reason = (error.strerror or str(error)).lower()
                raise WorkerError(f"cannot listen on port {port}: {reason}", "choose others with --base-port") from None
            self._next_port = port + 1
            return listener
        raise WorkerError(f"no port is free from {self._next_port} on", "choose others with --base-port")


class Tunnel:
    """One worker's loopback port."""

    def __init__(
        self, listener: socket.socket, head: Head, worker: Callable[[], Worker], broke: Callable[[], None]
    ) -> None:
        """Serve the local programs that connect to `listener`. `broke` is told when one of them lost the worker."""
        self._listener = listener
        self._head = head
        self._worker = worker
        self._broke = broke
        self._lock = Lock()
        self._live: dict[Conversation, Traffic] = {}
        self._done = Traffic()
        self._refusals: set[str] = set()
        self._serving = 0
        self._closed = False
        self.port: int = listener.getsockname()[1]
        Thread(target=self._accept, name=f"tunnel {self.port}", daemon=True).start()

    @property
    def endpoint(self) -> str:
        """What llama.cpp's `--rpc` takes."""
        return f"127.0.0.1:{self.port}"

    @property
    def traffic(self) -> Traffic:
        """Bytes of all its connections so far."""
        with self._lock:
            counts = [self._done, *self._live.values()]
            return Traffic(sum(count.to_peer for count in counts), sum(count.from_peer for count in counts))

    @property
    def connections(self) -> int:
        """Local programs that it serves, or that wait."""
        return self._serving

    def cut(self) -> None:
        """End its connections: nothing is heard of the worker, and TCP may take a quarter of an hour to notice."""
        with self._lock:
            talks = list(self._live)
        for talk in talks:
            talk.channel.close()

    def close(self) -> None:
        """Take no more connections, and end those that are."""
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                plain, _ = self._listener.accept()
            except OSError as error:
                if not self._closed:
                    log.warning("cannot accept a local connection: %s", error)
                    time.sleep(_ACCEPT_PAUSE)
                continue
            if not self._lets_in(plain):
                plain.close()
                continue
            with self._lock:
                self._serving += 1
            try:
                Thread(target=self._serve, args=(plain,), name=f"tunnel {self.port}", daemon=True).start()
            except RuntimeError as error:  # no more threads
                log.warning("cannot serve a local connection: %s", error)
                plain.close()
                with self._lock:
                    self._serving -= 1

    def _lets_in(self, plain: socket.socket) -> bool:
        try:
            reason = refusal(plain)
        except OSError as error:  # it has gone, or the tables cannot be read
            reason = str(error)
        if reason is None and self.connections >= MAX_CONNECTIONS:
            reason = "there are too many connections"
        if reason is None:
            return True
        level = logging.DEBUG if reason in self._refusals else logging.WARNING
        self._refusals.add(reason)
        log.log(level, "refused a local connection to port %d: %s", self.port, reason)
        return False

    def _serve(self, plain: socket.socket) -> None:
        try:
            with plain:
                trouble = self._explained(plain, self._worker())
        finally:
            with self._lock:
                self._serving -= 1
        if trouble and not self._closed:
            log.warning("port %d: %s", self.port, trouble)
            self._broke()

    def _explained(self, plain: socket.socket, worker: Worker) -> str | None:
        """Serve one local program to its end; what went wrong, None for nothing."""
        try:
            return self._through(plain, worker)
        except LinkError as error:
            return f"{worker.name} {error}"
        except (ChannelError, PeerError, PeerClosed) as error:
            return f"{worker.name} closed the connection before it was through: {error or 'it said goodbye'}"
        except OSError as error:
            log.debug("port %d: the local program has gone: %s", self.port, error)
            return None

    def _through(self, plain: socket.socket, worker: Worker) -> str | None:
        """As `_explained`. Raises what a fresh connection can."""
        if not worker.there:
            return f"{worker.name} is not there; it is dialled until it is back"
        with self._connected(worker) as (talk, traffic):
            answer = self._wait(talk, plain)
            if isinstance(answer, Busy):
                return f"{worker.name} is busy: {answer.holder} has had it for {answer.since} s"
            if isinstance(answer, Refused):
                return f"{worker.name} refused the connection: {answer.reason}"
            if answer is None:
                return None
            early = talk.rest()
            plain.sendall(early)
            traffic.from_peer += len(early)
            end = pump(plain, talk.channel, traffic)
        log.debug("port %d: %s", self.port, end.value)
        return None if end is PumpEnd.PLAIN_CLOSED else f"the tunnel to {worker.name} was {end.value}"

    @contextmanager
    def _connected(self, worker: Worker) -> Iterator[tuple[Conversation, Traffic]]:
        """A data connection to the process that the link leads to, asked for and counted."""
        greeting = greet(worker.address, self._head)
        talk, traffic = greeting.talk, Traffic()
        with self._lock:
            self._live[talk] = traffic
        try:
            if greeting.peer.key != worker.key:
                raise LinkError(Problem.UNREACHABLE, "another process answers in its place")
            talk.send(Data(greeting.protocol, self._head.session))
            yield talk, traffic
        finally:
            talk.channel.close()
            with self._lock:
                del self._live[talk]
                self._done.to_peer += traffic.to_peer
                self._done.from_peer += traffic.from_peer

    @staticmethod
    def _wait(talk: Conversation, plain: socket.socket) -> Ok | Busy | Refused | None:
        """The worker's answer, however long it takes; None when the local program does not wait for it."""
        look = select.poll()
        # Not a read: it may have sent its first request already.
        look.register(plain, select.POLLRDHUP)
        while not look.poll(0):
            with suppress(TimeoutError):
                answer = talk.receive(Ok, Busy, Refused, timeout=LOOK_INTERVAL)
                assert isinstance(answer, Ok | Busy | Refused)
                return answer
        return None
