"""Goal: a tunnel of two pumps is a plain connection to both programs, and its end is called by its right name.

program -- plain -- pump -- TLS -- pump -- plain -- program, all real sockets.
"""

from __future__ import annotations

import gc
import hashlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

from app.p2p import identity
from app.p2p.channel import Channel
from app.p2p.identity import Role
from app.p2p.pump import PumpEnd, Traffic, pump
from app.p2p.token import generate, network, parse

HANG = 30.0
"""Seconds after which a test is taken to hang."""
MIB = 1024 * 1024

AUTHORITY = identity.authority(network(parse(generate())))
SERVER = identity.server_context([identity.mint(AUTHORITY, Role.WORKER, "box-1")])
CLIENT = identity.client_context(identity.mint(AUTHORITY, Role.HEAD, "desk"))


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname(), timeout=HANG)
        accepted, _ = listener.accept()
        accepted.settimeout(HANG)
        return dialled, accepted


class Tunnel:
    """`client` and `server` are the programs' sockets, `head` and `worker` what is between them.

    With a wire a test can tamper with what passes between these two.
    """

    def __init__(self, wired: bool = False, sockets: list[socket.socket] | None = None) -> None:
        self.client, head_plain, head_sock, worker_sock, worker_plain, self.server = sockets or [
            *tcp_pair(),
            *tcp_pair(),
            *tcp_pair(),
        ]
        self.pool = ThreadPoolExecutor(16)
        self.flip_at: int | None = None
        self.wire: list[socket.socket] = []
        if wired:
            near = worker_sock
            far, worker_sock = tcp_pair()
            self.wire = [near, far]
            self.pool.submit(self._forward, near, far, True)
            self.pool.submit(self._forward, far, near, False)
        self.head = Channel(head_sock, CLIENT, server_side=False, server_hostname=AUTHORITY.tag)
        self.worker = Channel(worker_sock, SERVER, server_side=True)
        served = self.pool.submit(self.worker.handshake, HANG)
        self.head.handshake(HANG)
        served.result(HANG)
        self.head_traffic, self.worker_traffic = Traffic(), Traffic()
        self.head_end: Future[PumpEnd] = self.pool.submit(pump, head_plain, self.head, self.head_traffic)
        self.worker_end: Future[PumpEnd] = self.pool.submit(pump, worker_plain, self.worker, self.worker_traffic)

    def _forward(self, source: socket.socket, sink: socket.socket, from_head: bool) -> None:
        passed = 0
        try:
            while data := bytearray(source.recv(65536)):
                if from_head and self.flip_at is not None and passed <= self.flip_at < passed + len(data):
                    data[self.flip_at - passed] ^= 1
                passed += len(data)
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.cut()

    def cut(self) -> None:
        """The wire ends, in mid-stream and without a goodbye."""
        for sock in self.wire:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for channel in (self.head, self.worker):
            channel.close()
        for sock in (self.client, self.server, *self.wire):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self.pool.shutdown()


@pytest.fixture
def tunnel() -> Iterator[Tunnel]:
    tunnel = Tunnel()
    yield tunnel
    tunnel.close()


@pytest.fixture
def wired() -> Iterator[Tunnel]:
    tunnel = Tunnel(wired=True)
    yield tunnel
    tunnel.close()


def drain(sock: socket.socket) -> bytes:
    """All until the end; a reset is an end here."""
    data = bytearray()
    with suppress(ConnectionResetError):
        while more := sock.recv(MIB):
            data += more
    return bytes(data)


def read_exactly(sock: socket.socket, n: int) -> bytes:
    data = bytearray()
    while len(data) < n:
        more = sock.recv(n - len(data))
        assert more, "the stream ended early"
        data += more
    return bytes(data)


def test_bytes_pass_both_ways_at_once_and_are_counted(tunnel: Tunnel) -> None:
    size = 24 * MIB
    up, down = os.urandom(size), os.urandom(size)
    sends = [tunnel.pool.submit(tunnel.client.sendall, up), tunnel.pool.submit(tunnel.server.sendall, down)]
    at_server = tunnel.pool.submit(read_exactly, tunnel.server, size)
    at_client = tunnel.pool.submit(read_exactly, tunnel.client, size)
    assert hashlib.sha256(at_server.result(HANG)).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(at_client.result(HANG)).digest() == hashlib.sha256(down).digest()
    for future in sends:
        future.result(HANG)
    tunnel.client.close()
    tunnel.head_end.result(HANG)
    tunnel.worker_end.result(HANG)
    assert tunnel.head_traffic == tunnel.worker_traffic == Traffic(to_peer=size, from_peer=size)


def test_questions_and_answers_pass_without_waiting_for_more(tunnel: Tunnel) -> None:
    for size in (1, 64, 16_384, 300_000):
        tunnel.client.sendall(bytes(size))
        assert read_exactly(tunnel.server, size) == bytes(size)
        tunnel.server.sendall(b"x")
        assert tunnel.client.recv(10) == b"x"


def test_the_head_s_program_closes(tunnel: Tunnel) -> None:
    payload = os.urandom(5 * MIB)
    tunnel.client.sendall(payload)
    tunnel.client.close()
    assert drain(tunnel.server) == payload
    assert tunnel.head_end.result(HANG) is PumpEnd.PLAIN_CLOSED
    assert tunnel.worker_end.result(HANG) is PumpEnd.PEER_CLOSED


def test_the_backend_closes(tunnel: Tunnel) -> None:
    tunnel.server.sendall(b"last words")
    tunnel.server.close()
    assert drain(tunnel.client) == b"last words"
    assert tunnel.worker_end.result(HANG) is PumpEnd.PLAIN_CLOSED
    assert tunnel.head_end.result(HANG) is PumpEnd.PEER_CLOSED


def test_a_program_that_dies_is_a_program_that_closed(tunnel: Tunnel) -> None:
    tunnel.client.sendall(b"x")
    assert tunnel.server.recv(1) == b"x"
    tunnel.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    tunnel.server.close()  # a reset
    assert tunnel.worker_end.result(HANG) is PumpEnd.PLAIN_CLOSED
    assert tunnel.head_end.result(HANG) is PumpEnd.PEER_CLOSED


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while the head uploads"])
def test_a_cut_ends_both_sides_and_is_called_one(wired: Tunnel, busy: bool) -> None:
    payload = os.urandom(8 * MIB)

    def upload() -> None:
        with suppress(OSError):
            while True:
                wired.client.sendall(payload)

    if busy:
        wired.pool.submit(upload)
    else:
        wired.client.sendall(b"x")
    first = wired.server.recv(1)
    wired.cut()
    arrived = first + drain(wired.server)
    assert wired.worker_end.result(HANG) is PumpEnd.CUT
    assert wired.head_end.result(HANG) is PumpEnd.CUT
    if busy:
        assert arrived == (payload * (len(arrived) // len(payload) + 1))[: len(arrived)]


def test_a_flipped_bit_ends_it_as_an_error_and_nothing_wrong_is_passed_on(wired: Tunnel) -> None:
    payload = os.urandom(4 * MIB)
    wired.flip_at = 2 * MIB

    def upload() -> None:
        with suppress(OSError):
            wired.client.sendall(payload)

    wired.pool.submit(upload)
    arrived = drain(wired.server)
    assert payload.startswith(arrived)
    assert len(arrived) < 2 * MIB
    assert wired.worker_end.result(HANG) is PumpEnd.ERROR
    # The worker's alert may be lost behind what it did not read.
    assert wired.head_end.result(HANG) in (PumpEnd.ERROR, PumpEnd.CUT)


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "while both directions are stuck"])
def test_another_thread_can_stop_it(tunnel: Tunnel, busy: bool) -> None:
    def flood(sock: socket.socket) -> None:
        with suppress(OSError):
            while True:
                sock.sendall(bytes(MIB))

    if busy:
        for sock in (tunnel.client, tunnel.server):
            tunnel.pool.submit(flood, sock)
        threading.Event().wait(0.5)
    tunnel.worker.close()
    assert tunnel.worker_end.result(HANG) is PumpEnd.STOPPED
    # The goodbye has no room behind what is stuck.
    assert tunnel.head_end.result(HANG) in ({PumpEnd.CUT, PumpEnd.PEER_CLOSED} if busy else {PumpEnd.PEER_CLOSED})


def test_a_channel_that_was_closed_before_is_stopped_and_the_local_program_is_told() -> None:
    channel_end, far_end = tcp_pair()
    client, plain = socket.socketpair()
    channel = Channel(channel_end, SERVER, server_side=True)
    channel.close()
    with far_end, client:
        client.settimeout(HANG)
        assert pump(plain, channel, Traffic()) is PumpEnd.STOPPED
        assert client.recv(1) == b""


def test_who_does_not_read_holds_up_who_sends_and_little_is_stored() -> None:
    """How much a sender gets rid of is what the kernel's buffers hold, and at most 1 MiB in each pump."""
    sockets = [*tcp_pair(), *tcp_pair(), *tcp_pair()]
    for sock in sockets:  # small and no longer growing, so that they do not hide what is in the pumps
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, 65536)
    payload = os.urandom(64 * MIB)
    sent = 0
    with closing(Tunnel(sockets=sockets)) as tunnel:
        tunnel.client.settimeout(1.0)
        with pytest.raises(TimeoutError):
            while True:
                sent += tunnel.client.send(payload[sent : sent + MIB])
        kernel = sum(
            sock.getsockopt(socket.SOL_SOCKET, o) for sock in sockets for o in (socket.SO_SNDBUF, socket.SO_RCVBUF)
        )
        assert sent <= kernel + 2 * MIB
        tunnel.client.settimeout(HANG)
        tunnel.pool.submit(tunnel.client.sendall, payload[sent:])
        assert read_exactly(tunnel.server, len(payload)) == payload


def test_a_hundred_tunnels_leave_no_thread_and_no_descriptor() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(100):
        tunnel = Tunnel(wired=True)
        tunnel.client.sendall(b"hello")
        assert read_exactly(tunnel.server, 5) == b"hello"
        [tunnel.client.close, tunnel.server.close, tunnel.cut, tunnel.head.close][number % 4]()
        tunnel.head_end.result(HANG)
        tunnel.worker_end.result(HANG)
        tunnel.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


@pytest.mark.parametrize("how", ["the head goes", "the head is cut off", "it is stopped"])
def test_a_backend_that_hangs_does_not_hold_the_tunnel_for_ever(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """The server reads nothing while the head uploads: the worker's side blocks in mid-write.

    Only so much is sent that the head's goodbye still gets through to the worker.
    """
    monkeypatch.setattr("app.p2p.pump.UNREAD_LIMIT", 0.2 if how == "the head goes" else 10 * HANG)
    piece = 64 * 1024
    monkeypatch.setattr("app.p2p.pump.PLAIN_BUFFER", piece)
    plain, server = tcp_pair()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, piece)  # set, so that the kernel does not let it grow
    with closing(Tunnel(sockets=[*tcp_pair(), *tcp_pair(), plain, server])) as tunnel:
        sent = 0
        while sent - tunnel.worker_traffic.from_peer < 2 * piece:
            tunnel.client.sendall(bytes(piece))
            sent += piece
            deadline = time.monotonic() + 0.5
            while tunnel.worker_traffic.from_peer < sent and time.monotonic() < deadline:
                time.sleep(0.01)
        if how == "the head goes":
            tunnel.head.close()
            assert tunnel.worker_end.result(HANG) is PumpEnd.CUT
        elif how == "the head is cut off":
            tunnel.head._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            tunnel.head.close()
            assert tunnel.worker_end.result(HANG) is PumpEnd.CUT
        else:
            tunnel.worker.close()
            assert tunnel.worker_end.result(HANG) is PumpEnd.STOPPED
