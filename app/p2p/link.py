"""The head's control connection to one worker: open it, follow what the worker says of itself, notice its loss."""

from __future__ import annotations

import logging
import math
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from threading import Thread

from app import __version__
from app.p2p import peers
from app.p2p.channel import HANDSHAKE_TIMEOUT, Channel, ChannelCut, ChannelError, ChannelRefused
from app.p2p.conversation import Conversation, PeerClosed
from app.p2p.frames import (
    MAX_NAME,
    PING_INTERVAL,
    PROTOCOL,
    SILENCE_LIMIT,
    Bye,
    Control,
    Hello,
    PeerError,
    Ping,
    Pong,
    Purpose,
    Refused,
    Status,
    Welcome,
)
from app.p2p.identity import Authority, Peer, PeerRefused, Role, check_peer, client_context, mint
from app.p2p.records import clean

CONNECT_TIMEOUT = 2.5
"""Seconds for TCP to reach one address: a millisecond on a LAN; a first packet that is lost is sent again after 1 s."""
ANSWER_TIMEOUT = 4.0
"""Seconds for a worker's welcome, and for its hello: a round trip each, but its machine may be under load."""
FRAME_PAUSE = 0.01
"""Seconds before the next frame is read, so that a flood of them is held up at its sender."""
STATUS_PAUSE = 0.2
"""Seconds between two statuses that are told of, the newest of those that came: each may be a line in a log."""
GOODBYE_TIMEOUT = 1.0
"""Seconds for our goodbye to a worker that reads nothing."""

Address = peers.Peer
"""Where to dial: a host name or a numeric address (link-local ones with `%interface`), and a port."""

log = logging.getLogger(__name__)


class Problem(Enum):
    """Why a worker cannot be used, in words for the user."""

    UNREACHABLE = "cannot be reached"
    REFUSED = "token refused"
    NOT_A_WORKER = "is not a worker of this version"
    DECLINED = "does not want us"


class LinkError(Exception):
    """No connection to a worker; the text says what happened."""

    def __init__(self, problem: Problem, reason: str) -> None:
        super().__init__(f"{problem.value}: {reason}" if reason else problem.value)
        self.problem = problem


@dataclass(frozen=True)
class Head:
    """Who we are to every worker, for as long as this process runs."""

    context: ssl.SSLContext
    tag: str
    session: str
    name: str
    purpose: Purpose


def new_head(authority: Authority, name: str, purpose: Purpose) -> Head:
    """A head of the network of `authority`, with a fresh certificate and session.

    `name`, cut and cleaned, is what other heads are told when this one is why
    they wait. It may be the host name: it travels inside TLS, where only holders of the
    token read it.
    """
    leaf = mint(authority, Role.HEAD, secrets.token_hex(8))
    return Head(client_context(leaf), authority.tag, secrets.token_hex(16), clean(name, MAX_NAME), purpose)


@dataclass(frozen=True)
class Greeting:
    """A connection on which the worker has said welcome, so that it has accepted our certificate."""

    talk: Conversation
    peer: Peer
    address: Address
    """Numeric, whatever was dialled: a second connection goes to the same machine."""
    protocol: int
    """The version to speak."""

    def close(self) -> None:
        """Let it be."""
        self.talk.channel.close()


def greet(address: Address, head: Head) -> Greeting:
    """Dial `address` and prove who is who; every connection begins so. Raises LinkError."""
    with ExitStack() as dialling:
        try:
            sock = dialling.enter_context(socket.create_connection((address.host, address.port), CONNECT_TIMEOUT))
            # It may have been reset by now: these fail too.
            host, port = socket.getnameinfo(sock.getpeername(), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
            channel = Channel(sock, head.context, server_side=False, server_hostname=head.tag)
        except (OSError, UnicodeError) as error:  # a host name that cannot be one
            reason = error.strerror if isinstance(error, OSError) else "no such name"
            raise LinkError(Problem.UNREACHABLE, str(reason or error).lower()) from error
        dialling.pop_all()  # the channel has it
    talk = Conversation(channel)
    with _explained(channel):
        channel.handshake(HANDSHAKE_TIMEOUT)
        peer = check_peer(channel.tls)
        welcome = talk.receive(Welcome, timeout=ANSWER_TIMEOUT)
    return Greeting(talk, peer, Address(host, int(port)), min(PROTOCOL, welcome.protocol))


class LinkEnd(Enum):
    """How a link ended, in words for the log."""

    CLOSED = "closed by us"
    BYE = "it said goodbye"
    CUT = "its connection broke"
    SILENT = "nothing was heard of it"
    WRONG = "it sent what is no message"


class Link:
    """An open control connection. One thread listens and pings; `status` is the newest that the worker told."""

    def __init__(self, greeting: Greeting, head: Head) -> None:
        """Introduce us on a connection of `greet`: afterwards the hello has come. Raises LinkError.

        For the worker, a later control connection of one session takes the place of the earlier.
        """
        self.address = greeting.address
        self.peer = greeting.peer
        self._talk = greeting.talk
        self._leaving = False
        with _explained(self._talk.channel):
            self.hello = self._introduce(greeting, head)
        self.status = self.hello.status

    def _introduce(self, greeting: Greeting, head: Head) -> Hello:
        self._talk.send(Control(greeting.protocol, head.session, head.name, __version__, head.purpose))
        answer = self._talk.receive(Hello, Refused, timeout=ANSWER_TIMEOUT)
        if isinstance(answer, Refused):
            raise LinkError(Problem.DECLINED, answer.reason)
        assert isinstance(answer, Hello)
        if answer.id != self.peer.id:
            raise LinkError(Problem.NOT_A_WORKER, "it calls itself by another id than its certificate")
        return answer

    def follow(
        self,
        on_status: Callable[[Status], None],
        on_end: Callable[[LinkEnd], None],
        *,
        ping_interval: float = PING_INTERVAL,
        silence_limit: float = SILENCE_LIMIT,
        frame_pause: float = FRAME_PAUSE,
        status_pause: float = STATUS_PAUSE,
    ) -> None:
        """Listen in a thread from now on. `on_end` is called once, the last of all; afterwards the link is closed."""

        def run() -> None:
            end = self._listen(on_status, ping_interval, silence_limit, frame_pause, status_pause)
            self._talk.channel.close()
            on_end(end)

        Thread(target=run, name=f"link {self.address}", daemon=True).start()

    def _listen(
        self,
        on_status: Callable[[Status], None],
        ping_interval: float,
        silence_limit: float,
        frame_pause: float,
        status_pause: float,
    ) -> LinkEnd:
        heard = pinged = time.monotonic()
        told = -math.inf
        news: Status | None = None
        try:
            while (now := time.monotonic()) < heard + silence_limit:
                if now >= pinged + ping_interval:
                    self._talk.send(Ping())
                    pinged = now
                if news is not None and now >= told + status_pause:
                    self.status = news
                    on_status(news)
                    news, told = None, now
                due = math.inf if news is None else told + status_pause
                wait = max(0.0, min(pinged + ping_interval, heard + silence_limit, due) - time.monotonic())
                with suppress(TimeoutError):
                    message = self._talk.receive(Status, Ping, Pong, Bye, timeout=wait)
                    heard = time.monotonic()
                    if isinstance(message, Bye):
                        return LinkEnd.BYE
                    if isinstance(message, Ping):
                        self._talk.send(Pong())
                    if isinstance(message, Status):
                        news = message
                    time.sleep(frame_pause)
        except PeerClosed:
            # Without a goodbye of the protocol's, unless it answers ours: then its process has gone.
            return LinkEnd.CLOSED if self._leaving else LinkEnd.CUT
        except ChannelError as error:
            log.debug("%s: %s", self.address, error)
            return LinkEnd.CLOSED if self._leaving else LinkEnd.CUT
        except PeerError as error:
            log.warning("%s: it sent what is no message: %s", self.address, error)
            return LinkEnd.WRONG
        return LinkEnd.SILENT

    def close(self, reason: str = "") -> None:
        """Say goodbye and end it, from any thread."""
        self._leaving = True
        goodbye = Thread(target=self._say_bye, args=(reason,), name=f"goodbye {self.address}", daemon=True)
        goodbye.start()
        goodbye.join(GOODBYE_TIMEOUT)
        self._talk.channel.close()

    def _say_bye(self, reason: str) -> None:
        with suppress(ChannelError):
            self._talk.send(Bye(reason))


@contextmanager
def _explained(channel: Channel) -> Iterator[None]:
    """Close a fresh connection that fails; what was the peer's or the network's doing becomes a LinkError."""
    try:
        yield
    except BaseException as error:
        channel.close()
        if (explained := _explain(error)) is None:
            raise
        raise explained from error


def _explain(error: BaseException) -> LinkError | None:
    match error:
        case ChannelRefused():
            return LinkError(Problem.REFUSED, "")
        case ChannelCut() | PeerClosed():
            return LinkError(Problem.UNREACHABLE, "it closed the connection")
        case TimeoutError():
            return LinkError(Problem.NOT_A_WORKER, "it does not answer")
        case ChannelError() | PeerError() | PeerRefused():
            return LinkError(Problem.NOT_A_WORKER, str(error))
    return None
