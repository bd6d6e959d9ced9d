"""A worker as heads see it: real TLS and real frames on a real port, and behind it whatever a test wants."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from app.p2p.channel import Channel, ChannelError
from app.p2p.conversation import Conversation, PeerClosed
from app.p2p.frames import (
    Bye,
    Control,
    Data,
    Device,
    Hello,
    Message,
    Ok,
    PeerError,
    Ping,
    Pong,
    Refused,
    State,
    Status,
    Welcome,
    encode,
)
from app.p2p.identity import Authority, PeerRefused, Role, authority, check_peer, mint, server_context
from app.p2p.link import Address
from app.p2p.token import generate, network, parse

HANG = 30.0
"""Seconds after which a test is taken to hang."""
GPU = Device("CUDA0", "NVIDIA GeForce RTX 4090", 24 << 30, 23 << 30)
READY = Status(State.READY, "", 0, "7.0.0", (GPU,))
BUSY = replace(READY, state=State.BUSY, holder="other-desk", since=42)

Serve = Callable[[Conversation], None]


def new_token() -> tuple[str, Authority]:
    """A token, and the network that it makes."""
    token = generate()
    return token, authority(network(parse(token)))


def eventually(true: Callable[[], object]) -> None:
    """Wait until `true()` is; fail when it hangs."""
    deadline = time.monotonic() + HANG
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


class FakeWorker:
    """Listens until `kill` or `stop`. A new one with the same id is that worker restarted, or its clone."""

    def __init__(
        self,
        ca: Authority,
        id: str = "box-1",
        name: str = "",
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        status: Status = READY,
        serve: Serve | None = None,
        hello: Callable[[Hello], Message] = lambda hello: hello,
    ) -> None:
        """`serve` is the server behind it, by default one that sends everything back; `hello` may change the
        answer to a control message.
        """
        self.status = status
        self.answer: Message = Ok()
        """What a data connection is told, once `gate` is open."""
        self.gate = threading.Event()
        self.gate.set()
        self.received = bytearray()
        """What has come on data connections."""
        self.asked = 0
        """Data connections so far."""
        self.heads: list[Control] = []
        """Control messages so far."""
        self.left: list[str] = []
        """Reasons of the heads that said goodbye."""
        self.mute = False
        """Neither ping nor answer any more, as if the cable were pulled."""
        self.flood: tuple[Status, ...] = ()
        """What heads are told after the hello, in turn, as fast as they take it, until they have left."""
        self._hello = Hello(1, id, name or id, "0.1.0", "0.5.0", "0c1e57098", "on", status)
        self._change_hello = hello
        self._serve_data = serve or self._echo
        self.context = server_context([mint(ca, Role.WORKER, id)])
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port: int = self._listener.getsockname()[1]
        self.address = Address(host, self.port)
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._controls: dict[Conversation, str] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FakeWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def controls(self) -> int:
        """Control connections that are open."""
        return len(self._controls)

    def tell(self, status: Status) -> None:
        """Change the state, and tell the heads."""
        self.status = status
        for talk in list(self._controls):
            talk.send(status)

    def send_raw(self, data: bytes) -> None:
        """Send heads what may be no message."""
        for talk in list(self._controls):
            talk.channel.write(data)

    def stop(self) -> None:
        """End as a worker does that is stopped."""
        for talk in list(self._controls):
            with suppress(ChannelError):
                talk.send(Bye("the worker stops"))
        self.close()

    def close(self) -> None:
        """End TLS as it should be, and say nothing."""
        for talk in list(self._controls):
            talk.channel.close()
        self.kill()

    def stop_listening(self) -> None:
        """Free the port and keep the connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def kill(self) -> None:
        """End as a process does that is killed."""
        self.stop_listening()
        with self._lock:
            for sock in self._sockets:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                with self._lock:
                    self._sockets.append(sock)
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        channel = Channel(sock, self.context, server_side=True)
        talk = Conversation(channel)
        try:
            channel.handshake(HANG)
            peer = check_peer(channel.tls)
            talk.send(Welcome(1))
            first = talk.receive(Control, Data, timeout=HANG)
            if isinstance(first, Control):
                self._control(talk, first, peer.key)
            elif isinstance(first, Data):
                self._data(talk, f"{peer.key} {first.session}")
        except (ChannelError, PeerRefused, PeerClosed, PeerError, TimeoutError, OSError):
            pass
        finally:
            channel.close()
            with self._lock:
                self._sockets.remove(sock)

    def _control(self, talk: Conversation, control: Control, key: str) -> None:
        self.heads.append(control)
        # As the relay does it: what was opened last has the session, and has it before the hello.
        session = f"{key} {control.session}"
        for other, held in list(self._controls.items()):
            if held == session:
                self._controls[other] = "replaced"
        self._controls[talk] = session
        pinged = time.monotonic()
        try:
            talk.send(self._change_hello(replace(self._hello, status=self.status)))
            while self.flood:
                talk.channel.write(b"".join(map(encode, self.flood * 100)))
            while True:
                if not self.mute and time.monotonic() > pinged + 1:
                    talk.send(Ping())
                    pinged = time.monotonic()
                with suppress(TimeoutError):
                    message = talk.receive(Ping, Pong, Bye, timeout=0.2)
                    if isinstance(message, Bye):
                        self.left.append(message.reason)
                        return
                    if isinstance(message, Ping) and not self.mute:
                        talk.send(Pong())
        finally:
            del self._controls[talk]

    def _data(self, talk: Conversation, session: str) -> None:
        self.asked += 1
        if session not in self._controls.values():
            talk.send(Refused("no control connection for this session"))
            return
        self.gate.wait(HANG)
        talk.send(self.answer)
        if isinstance(self.answer, Ok):
            self._serve_data(talk)

    def _echo(self, talk: Conversation) -> None:
        data = talk.rest()
        while True:
            self.received += data
            if data:
                talk.channel.write(data)
            if not (data := talk.channel.read(65536)):
                return
