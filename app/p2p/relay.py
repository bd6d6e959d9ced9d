"""Stands between heads and the server: accepts, authenticates, keeps control connections, pumps data connections.

A connection has one thread. It is a stranger, with little room and little time,
until TLS has shown that it holds the token; the server is dialled for nobody else.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ssl import SSLContext
from threading import Event, Lock, Thread

from app.p2p.channel import FIRST_BYTE_TIMEOUT, Channel, ChannelError, ChannelRefused
from app.p2p.control import ControlConnection
from app.p2p.conversation import Conversation, PeerClosed
from app.p2p.frames import (
    PROTOCOL,
    Busy,
    Control,
    Data,
    Hello,
    Message,
    Ok,
    PeerError,
    Purpose,
    Refused,
    Welcome,
)
from app.p2p.gate import Gate, Refusals, Visit
from app.p2p.identity import Peer, PeerRefused, check_peer
from app.p2p.lease import Connect, Decline, Refuse
from app.p2p.lender import Borrower, Lender
from app.p2p.pump import PumpEnd, Traffic, pump
from app.p2p.server import RpcServer

FIRST_FRAME_TIMEOUT = 5.0
"""Seconds from the welcome to the head's first message: one round trip."""
DIAL_TIMEOUT = 5.0
"""Seconds to reach the server, which was well a moment ago and is on this machine."""
DRAIN_TIMEOUT = 2.0
"""Seconds that a data connection has at the end to finish by itself."""
GOODBYE_TIMEOUT = 1.0
"""Seconds for the heads to be told."""
_ACCEPT_PAUSE = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class About:
    """What a hello tells besides the server's status."""

    id: str
    name: str
    version: str
    llama_cpp: str
    llama_cpp_commit: str
    sandbox: Callable[[], str]
    """The layers that are in force now."""


class Relay:
    """Serves heads on listening sockets until `stop`."""

    def __init__(self, context: SSLContext, about: About, server: RpcServer, lender: Lender) -> None:
        self._context = context
        self._about = about
        self._server = server
        self._lender = lender
        self._gate = Gate()
        self._refusals = Refusals()
        self._listeners: Sequence[socket.socket] = ()
        self._controls: set[ControlConnection] = set()
        self._lock = Lock()
        self._stopping = Event()

    def start(self, listeners: Sequence[socket.socket]) -> None:
        """Accept on `listeners`, which are closed by `stop`."""
        self._listeners = listeners
        for listener in listeners:
            Thread(target=self._accept, args=(listener,), name="accept", daemon=True).start()

    def stop(self) -> None:
        """Let a running data connection finish, within limits, tell every head, close everything."""
        self._stopping.set()
        for listener in self._listeners:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
            listener.close()
        self._lender.stop()
        deadline = time.monotonic() + DRAIN_TIMEOUT
        while not self._lender.idle and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            controls = list(self._controls)
        goodbyes = [Thread(target=control.say_bye, args=("the worker stops",), daemon=True) for control in controls]
        for goodbye in goodbyes:
            goodbye.start()
        deadline = time.monotonic() + GOODBYE_TIMEOUT
        for goodbye in goodbyes:
            goodbye.join(max(0.0, deadline - time.monotonic()))
        self._gate.clear()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                sock, address = listener.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                log.warning("cannot accept a connection: %s", error)
                self._gate.make_room()
                time.sleep(_ACCEPT_PAUSE)
                continue
            visit = self._gate.enter(sock, address[0])
            try:
                Thread(target=self._serve, args=(sock, visit), name=f"head {address[0]}", daemon=True).start()
            except RuntimeError as error:  # no more threads
                log.warning("cannot serve a connection: %s", error)
                self._gate.leave(visit)
                sock.close()
                time.sleep(_ACCEPT_PAUSE)

    def _serve(self, sock: socket.socket, visit: Visit) -> None:
        try:
            channel = Channel(sock, self._context, server_side=True)
        except OSError as error:  # it has gone already
            log.debug("%s: %s", visit.source, error)
            sock.close()
            self._gate.leave(visit)
            return
        try:
            channel.handshake(first_byte=FIRST_BYTE_TIMEOUT)
            peer = check_peer(channel.tls)
            if self._gate.prove(visit):
                talk = Conversation(channel)
                talk.send(Welcome(PROTOCOL))
                self._answer(talk, peer, talk.receive(Control, Data, timeout=FIRST_FRAME_TIMEOUT))
        except (ChannelRefused, PeerRefused) as error:
            self._refusals.note(visit.source, str(error))
        except (ChannelError, PeerError, PeerClosed, TimeoutError) as error:
            log.debug("%s: %s", visit.source, error or type(error).__name__)
        except Exception:  # one connection's trouble must not end in a traceback of a thread
            log.exception("the connection of %s broke", visit.source)
        finally:
            channel.close()
            self._gate.leave(visit)

    def _answer(self, talk: Conversation, peer: Peer, first: Message) -> None:
        assert isinstance(first, (Control, Data))
        # A session is the head's only together with the key that opened it.
        session = f"{peer.key} {first.session}"
        if first.protocol != PROTOCOL:
            talk.send(Refused(f"this worker speaks version {PROTOCOL} of the protocol"))
        elif isinstance(first, Control):
            self._control(talk, session, first)
        else:
            self._lend(talk, session)

    def _control(self, talk: Conversation, session: str, control: Control) -> None:
        connection = ControlConnection(talk, self._lender)
        log.info("%s (%s) is here to %s", control.name, control.version, control.purpose.value)
        if control.purpose is Purpose.CONNECT:
            self._lender.join(session, control.name, connection)
        with self._lock:
            self._controls.add(connection)
        try:
            about = self._about
            connection.start(
                Hello(
                    PROTOCOL,
                    about.id,
                    about.name,
                    about.version,
                    about.llama_cpp,
                    about.llama_cpp_commit,
                    about.sandbox(),
                    self._lender.status(),
                )
            )
            connection.listen()
        finally:
            with self._lock:
                self._controls.discard(connection)
            talk.channel.close()
            self._lender.leave(connection)
            log.info("%s has left", control.name)

    def _lend(self, talk: Conversation, session: str) -> None:
        borrower = Borrower(drop=talk.channel.close, gone=talk.channel.peer_gone)
        decision = self._lender.borrow(session, borrower)
        if isinstance(decision, Decline):
            talk.send(Busy(decision.holder, int(decision.since)))
        elif isinstance(decision, Refuse):
            talk.send(Refused(decision.reason))
        else:
            try:
                if isinstance(decision, Connect):
                    self._connect(talk)
            finally:
                talk.channel.close()
                self._lender.give_back(borrower)

    def _connect(self, talk: Conversation) -> None:
        try:
            plain = self._server.dial(DIAL_TIMEOUT)
        except OSError as error:
            log.warning("rpc-server cannot be reached: %s", error)
            talk.send(Refused("the server cannot be reached"))
            return
        with plain:
            talk.send(Ok())
            traffic = Traffic()
            started = time.monotonic()
            end = pump(plain, talk.channel, traffic)
        # The pump has the server on its plain side: what goes to its peer comes from the server.
        log.debug(
            "data connection %s after %.1f s, %d bytes in, %d out",
            end.value,
            time.monotonic() - started,
            traffic.from_peer,
            traffic.to_peer,
        )
        if end in (PumpEnd.CUT, PumpEnd.ERROR):
            log.warning("a data connection was %s", end.value)
