"""Targets behind a connection: what the relay, a head and a hostile backend's client read, before and after TLS."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import cache

from app.p2p import frames, rpc
from app.p2p.channel import Channel, ChannelError
from app.p2p.conversation import Conversation
from app.p2p.frames import Bye, Data, Ping, Purpose, State, Status, Welcome
from app.p2p.identity import Role, client_context, mint, server_context
from app.p2p.lender import Lender
from app.p2p.link import Address, Head, Link, LinkEnd, LinkError, greet, new_head
from app.p2p.listening import listen
from app.p2p.relay import About, Relay
from app.p2p.server import Ready, describe
from tests.fuzz.plain import CONTROL, HANG, HELLO, SESSION, STATUS, network

_CONTROL, _DATA = b"\0", b"\1"
_ALERT = 7
"""Bytes of a TLS record that says no."""
_RPC_HELLO = b"\x0e" + (24).to_bytes(8, "little") + bytes(24)


class _Server:
    """An `RpcServer` that hangs up on whoever reaches it."""

    def __init__(self) -> None:
        self.dials = 0
        self.state = Ready((), "7.0.0")

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def check_after_lease(self) -> bool:
        return True

    def dial(self, timeout: float) -> socket.socket:
        self.dials += 1
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours


class _Worker:
    """A relay on loopback, for as long as the process lives."""

    def __init__(self) -> None:
        self.server = _Server()
        lender = Lender()
        versions = (HELLO.version, HELLO.llama_cpp, HELLO.llama_cpp_commit)
        about = About(HELLO.id, HELLO.name, *versions, lambda: HELLO.sandbox)
        relay = Relay(server_context([mint(network(), Role.WORKER, "box-1")]), about, self.server, lender)
        listener = listen("127.0.0.1", 0)
        self.port: int = listener.getsockname()[1]
        lender.start(self.server)
        lender.server_changed(self.server.state)
        relay.start([listener])
        self.head = client_context(mint(network(), Role.HEAD, "head-1"))

    def dial(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), HANG)

    @contextmanager
    def talk(self) -> Iterator[Conversation]:
        """A connection of a head that has the token."""
        channel = Channel(self.dial(), self.head, server_side=False, server_hostname=network().tag)
        try:
            channel.handshake(HANG)
            talk = Conversation(channel)
            talk.receive(Welcome, timeout=HANG)
            yield talk
            _write(channel, b"")
        finally:
            channel.close()


@cache
def _worker() -> _Worker:
    return _Worker()


def read_first_record(data: bytes) -> bool:
    """What a stranger sends to the relay: it hangs up, and the server is not dialled. Taken is what it answers."""
    worker = _worker()
    before = worker.server.dials
    with worker.dial() as stranger:
        answered = _say(stranger, data)
    assert worker.server.dials == before
    return answered > _ALERT


def first_record_seeds() -> list[bytes]:
    seeds = [b"GET / HTTP/1.1\r\nHost: box\r\n\r\n", _RPC_HELLO]
    for context, name in ((_worker().head, network().tag), (ssl.create_default_context(), "box.lan")):
        outgoing = ssl.MemoryBIO()
        with suppress(ssl.SSLWantReadError):
            context.wrap_bio(ssl.MemoryBIO(), outgoing, False, name).do_handshake()
        seeds.append(outgoing.read())
    return seeds


def read_member(data: bytes) -> bool:
    """What a head that has the token sends to the relay. The first byte says on which kind of connection."""
    worker = _worker()
    before = worker.server.dials
    with worker.talk() as control:
        if data[:1] == _DATA:
            control.send(CONTROL)
            control.receive(frames.Hello, timeout=HANG)
            with worker.talk() as talk:
                _write(talk.channel, data[1:])
        else:
            _write(control.channel, data[1:])
    return worker.server.dials > before


def member_seeds() -> list[bytes]:
    control = b"".join(map(frames.encode, (CONTROL, Ping(), frames.Pong(), Bye("done"))))
    return [_CONTROL + control, _DATA + frames.encode(Data(1, SESSION)) + _RPC_HELLO]


def _write(channel: Channel, data: bytes) -> None:
    """Send `data` and the end, and wait until the other side has read it and hung up."""
    channel._sock.settimeout(HANG)
    with suppress(ChannelError):
        channel.write(data)
        channel._last_words(goodbye=True)
    _finish(channel._sock)


def _finish(sock: socket.socket) -> int:
    """How many bytes came until the other side had hung up."""
    count = 0
    with suppress(ConnectionError):
        with suppress(OSError):  # the other side was faster
            sock.shutdown(socket.SHUT_WR)
        while block := sock.recv(1 << 16):
            count += len(block)
    return count


def read_impostor(data: bytes) -> bool:
    """What answers a head where it took a worker to be."""

    with _answering(lambda sock: _say(sock, data)) as address, suppress(LinkError):
        greet(address, _head()).close()
        raise AssertionError("it passed for a worker")
    return False


def impostor_seeds() -> list[bytes]:
    """A server's first flight, of our network and of none."""
    seeds = [b"HTTP/1.1 400 Bad Request\r\n\r\n", bytes.fromhex("15030300020250")]
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    incoming.write(first_record_seeds()[2])
    with suppress(ssl.SSLWantReadError):
        _leaf().wrap_bio(incoming, outgoing, True).do_handshake()
    return [*seeds, outgoing.read()]


def read_hostile_worker(data: bytes) -> bool:
    """What a worker that has the token sends to a head, from its welcome to its end."""

    def answer(sock: socket.socket) -> None:
        channel = Channel(sock, _leaf(), server_side=True)
        with suppress(ChannelError):
            channel.handshake(HANG)
            _write(channel, data)
        channel.close()

    with _answering(answer) as address, suppress(LinkError):
        link = Link(greet(address, _head()), _head())
        ended: Future[LinkEnd] = Future()
        link.follow(lambda status: None, ended.set_result)
        return ended.result(HANG) is LinkEnd.BYE
    return False


def hostile_worker_seeds() -> list[bytes]:
    told = [Welcome(1), HELLO, Ping(), STATUS, Bye("the worker stops")]
    return [b"".join(map(frames.encode, told)), b"".join(map(frames.encode, [Welcome(1), frames.Refused("no")]))]


def read_backend(data: bytes) -> bool:
    """What a compromised rpc-server answers, through to the message that tells heads of its devices."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(HANG)
        theirs.sendall(data[: 1 << 16])
        theirs.shutdown(socket.SHUT_WR)
        with suppress(rpc.RpcError):
            ready = describe(rpc.probe(ours, HANG), ())
            frames.encode(Status(State.READY, "", 0, ready.protocol, ready.devices))
            return True
    return False


def backend_seeds() -> list[bytes]:
    def answer(content: bytes) -> bytes:
        return len(content).to_bytes(8, "little") + content

    hello, count = answer(bytes([7, 0, 0]) + bytes(25)), answer((2).to_bytes(4, "little"))
    return [hello + count + answer(bytes(16)) + answer(b"\xff" * 16)]


@contextmanager
def _answering(answer: Callable[[socket.socket], object]) -> Iterator[Address]:
    """Somebody who listens and does `answer` with the first connection."""

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(HANG)
            answer(sock)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield Address("127.0.0.1", listener.getsockname()[1])
        thread.join(HANG)
        assert not thread.is_alive(), "the head does not hang up"


def _say(sock: socket.socket, data: bytes) -> int:
    with suppress(ConnectionError):
        sock.sendall(data)
    seen = _finish(sock)
    # Thousands a minute: after a reset none of them keeps its port for another one.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return seen


@cache
def _head() -> Head:
    return new_head(network(), "desk", Purpose.CONNECT)


@cache
def _leaf() -> ssl.SSLContext:
    return server_context([mint(network(), Role.WORKER, "box-1")])
