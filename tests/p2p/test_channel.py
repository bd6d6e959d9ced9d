"""Goal: a channel carries bytes exactly, tells an end from a cut, and no peer can hold it up.

Real TLS over real sockets; what a hostile peer does is done on the raw socket.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from app.p2p import channel as module
from app.p2p import identity
from app.p2p.channel import Channel, ChannelCut, ChannelError, ChannelRefused
from app.p2p.identity import Authority, Role
from app.p2p.token import generate, network, parse

HANG = 30.0
"""Seconds after which a test is taken to hang."""
MIB = 1024 * 1024


def new_authority() -> Authority:
    return identity.authority(network(parse(generate())))


OURS, OTHER = new_authority(), new_authority()
HEAD = identity.mint(OURS, Role.HEAD, "desk")
SERVER = identity.server_context([identity.mint(OURS, Role.WORKER, "box-1")])
CLIENT = identity.client_context(HEAD)


def worker_side(sock: socket.socket) -> Channel:
    return Channel(sock, SERVER, server_side=True)


def head_side(sock: socket.socket, context: ssl.SSLContext = CLIENT) -> Channel:
    return Channel(sock, context, server_side=False, server_hostname=OURS.tag)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection over loopback: who dialled, who accepted."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dialled = socket.create_connection(listener.getsockname(), timeout=HANG)
        accepted, _ = listener.accept()
        return dialled, accepted


def shake_hands(head: Channel, worker: Channel) -> None:
    with ThreadPoolExecutor() as pool:
        other = pool.submit(worker.handshake, HANG)
        head.handshake(HANG)
        other.result(HANG)


def connected() -> tuple[Channel, Channel]:
    """A head's and a worker's channel after the handshake, over TCP."""
    dialled, accepted = tcp_pair()
    head, worker = head_side(dialled), worker_side(accepted)
    shake_hands(head, worker)
    return head, worker


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    head, worker = connected()
    with closing(head), closing(worker):
        yield head, worker


def read_exactly(channel: Channel, n: int) -> bytes:
    data = b""
    while len(data) < n:
        more = channel.read(n - len(data))
        assert more, "the stream ended early"
        data += more
    return data


def test_both_sides_know_who_they_talk_to(pair: tuple[Channel, Channel]) -> None:
    head, worker = pair
    assert identity.check_peer(head.tls).id == "box-1"
    assert identity.check_peer(worker.tls).id == "desk"


def test_bytes_arrive_exactly_with_a_reader_and_a_writer_on_each_side_at_once(pair: tuple[Channel, Channel]) -> None:
    size = 24 * MIB
    data = [os.urandom(size), os.urandom(size)]

    def send(channel: Channel, payload: bytes) -> None:
        view, at, step = memoryview(payload), 0, 1
        while at < size:  # pieces of every size, across records and blocks
            channel.write(view[at : at + step])
            at, step = at + step, step * 3 % 700_001 + 1

    def receive(channel: Channel) -> str:
        digest, left, view = hashlib.sha256(), size, memoryview(bytearray(100_000))
        while left:
            count = channel.read_into(view[: min(left, len(view))])
            assert count
            digest.update(view[:count])
            left -= count
        return digest.hexdigest()

    with ThreadPoolExecutor() as pool:
        sent = [pool.submit(send, channel, payload) for channel, payload in zip(pair, data, strict=True)]
        received = [pool.submit(receive, channel) for channel in reversed(pair)]
        assert [future.result(HANG) for future in received] == [hashlib.sha256(payload).hexdigest() for payload in data]
        for future in sent:
            future.result(HANG)


def test_what_several_threads_write_stays_together(pair: tuple[Channel, Channel]) -> None:
    head, worker = pair

    def send(letter: int) -> None:
        for _ in range(100):
            head.write(bytes([letter]) * 1000)

    with ThreadPoolExecutor() as pool:
        for letter in b"abcd":
            pool.submit(send, letter)
        seen = read_exactly(worker, 4 * 100 * 1000)
    assert all(len(set(seen[at : at + 1000])) == 1 for at in range(0, len(seen), 1000))


def test_a_goodbye_is_an_end(pair: tuple[Channel, Channel]) -> None:
    head, worker = pair
    head.write(b"last")
    head.close()
    assert read_exactly(worker, 4) == b"last"
    assert worker.read(10) == b""
    assert worker.read(10) == b""


def test_a_goodbye_waits_its_turn_behind_what_is_still_being_sent(pair: tuple[Channel, Channel]) -> None:
    head, worker = pair

    def send() -> None:
        head.write(bytes(16 * MIB))
        head.close()

    with ThreadPoolExecutor() as pool:
        pool.submit(send)
        time.sleep(0.2)  # let the buffers fill
        assert len(read_exactly(worker, 16 * MIB)) == 16 * MIB
        assert worker.read(10) == b""


def test_a_cut_is_not_an_end() -> None:
    dialled, accepted = tcp_pair()
    head = head_side(dialled)
    with closing(worker_side(accepted)) as worker:
        shake_hands(head, worker)
        head.write(b"first")
        dialled.close()  # behind TLS's back
        assert read_exactly(worker, 5) == b"first"
        with pytest.raises(ChannelCut):
            worker.read(10)


def test_a_reset_is_a_cut_to_reader_and_writer() -> None:
    dialled, accepted = tcp_pair()
    with closing(worker_side(accepted)) as worker:
        shake_hands(head_side(dialled), worker)
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        dialled.close()
        with pytest.raises(ChannelCut):
            worker.read(10)
        with pytest.raises(ChannelCut):
            worker.write(bytes(16 * MIB))


def test_a_flipped_bit_is_an_error_and_no_wrong_byte_comes_out() -> None:
    ours, far = socket.socketpair()
    middle, theirs = socket.socketpair()
    size, flip_at = 2 * MIB, MIB + 12345
    payload = os.urandom(size)
    handed_out = bytearray()

    def forward(source: socket.socket, sink: socket.socket, flip: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := bytearray(source.recv(65536)):
                if flip is not None and passed <= flip < passed + len(data):
                    data[flip - passed] ^= 1
                passed += len(data)
                sink.sendall(data)

    def send(channel: Channel) -> None:
        with suppress(ChannelError):
            channel.write(payload)

    with (
        ThreadPoolExecutor() as pool,
        closing(head_side(ours)) as head,
        closing(worker_side(theirs)) as worker,
        far,
        middle,
    ):
        pool.submit(forward, far, middle, flip_at)
        pool.submit(forward, middle, far, None)
        shake_hands(head, worker)
        pool.submit(send, head)
        with pytest.raises(ChannelError, match="bad record mac") as caught:
            while True:
                data = worker.read(100_000)
                assert data, "an error was taken for an end"
                handed_out += data
        assert not isinstance(caught.value, ChannelCut)
        with pytest.raises(ChannelError):
            worker.read(10)  # and it stays broken
        worker.close()
        far.shutdown(socket.SHUT_RDWR)
    assert 0 < len(handed_out) < flip_at
    assert payload.startswith(handed_out)


def test_a_reader_can_give_up_waiting_and_try_again(pair: tuple[Channel, Channel]) -> None:
    head, worker = pair
    with pytest.raises(TimeoutError):
        worker.read(10, timeout=0.05)
    head.write(b"late")
    assert read_exactly(worker, 4) == b"late"
    worker.write(b"fine")
    assert head.read(10, timeout=HANG) == b"fine"


def test_closing_wakes_a_reader_and_a_writer(pair: tuple[Channel, Channel]) -> None:
    head, _ = pair
    with ThreadPoolExecutor() as pool:
        # Nobody answers the one, nobody reads the other.
        waiting: list[Future[object]] = [pool.submit(head.read, 10), pool.submit(head.write, bytes(64 * MIB))]
        assert not wait(waiting, 0.3).done
        head.close()
        for future in waiting:
            with pytest.raises(ChannelError, match="closed on this side"):
                future.result(HANG)
    head.close()  # once more does no harm
    with pytest.raises(ChannelError, match="closed on this side"):
        head.read(1)
    with pytest.raises(ChannelError, match="closed on this side"):
        head.write(b"x")


@pytest.mark.parametrize("writing", [False, True], ids=["what was written is stuck", "another thread is writing"])
def test_a_peer_that_does_not_read_sees_the_close_at_once(pair: tuple[Channel, Channel], writing: bool) -> None:
    """It may wait for somebody else, and must see that it waits for nobody."""
    head, worker = pair
    head._sock.setblocking(False)
    with suppress(ChannelCut):  # there is no more room
        while True:
            head.write(bytes(MIB))
    head._sock.setblocking(True)
    with ThreadPoolExecutor() as pool:
        if writing:
            assert not wait([pool.submit(head.write, bytes(MIB))], 0.1).done
        assert not worker.peer_gone()
        head.close()
        deadline = time.monotonic() + HANG
        while not worker.peer_gone():
            assert time.monotonic() < deadline, "its end waits behind what nobody reads"
            time.sleep(0.01)


def test_closing_wakes_a_handshake() -> None:
    ours, theirs = socket.socketpair()
    with theirs, ThreadPoolExecutor() as pool:
        channel = worker_side(ours)
        future = pool.submit(channel.handshake, HANG)
        assert not wait([future], 0.1).done
        channel.close()
        with pytest.raises(ChannelError, match="closed on this side"):
            future.result(HANG)


def test_another_token_is_refused_in_the_handshake() -> None:
    stranger = identity.client_context(identity.mint(OTHER, Role.HEAD, "desk"))
    dialled, accepted = tcp_pair()
    with (
        closing(head_side(dialled, stranger)) as head,
        closing(worker_side(accepted)) as worker,
        ThreadPoolExecutor() as pool,
    ):
        served = pool.submit(worker.handshake, HANG)
        with pytest.raises(ChannelRefused):
            head.handshake(HANG)
        with pytest.raises(ChannelRefused):  # told by the head's alert
            served.result(HANG)


def test_the_workers_refusal_comes_with_the_heads_first_read() -> None:
    """The head takes the worker's certificate but shows one of another network."""
    forger = identity.client_context(identity.mint(OTHER, Role.HEAD, "desk"))
    forger.load_verify_locations(cadata=OURS.certificate.public_bytes(Encoding.DER))
    dialled, accepted = tcp_pair()
    with (
        closing(head_side(dialled, forger)) as head,
        closing(worker_side(accepted)) as worker,
        ThreadPoolExecutor() as pool,
    ):
        served = pool.submit(worker.handshake, HANG)
        head.handshake(HANG)
        with pytest.raises(ChannelRefused):
            served.result(HANG)
        worker.close()
        with pytest.raises(ChannelRefused):
            head.read(10)


def tls_1_2() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def no_certificate() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("context", [tls_1_2(), no_certificate()], ids=["tls 1.2", "no certificate"])
def test_a_client_that_is_none_of_ours_is_refused(context: ssl.SSLContext) -> None:
    dialled, accepted = tcp_pair()
    with (
        closing(head_side(dialled, context)) as head,
        closing(worker_side(accepted)) as worker,
        ThreadPoolExecutor() as pool,
    ):
        served = pool.submit(worker.handshake, HANG)
        with pytest.raises(ChannelError):
            head.handshake(HANG)
            head.read(1)
        with pytest.raises(ChannelError):
            served.result(HANG)


HELLO_OF_RPC = b"\x0e" + bytes(8)  # command 14, no payload: what llama.cpp's client says first


@pytest.mark.parametrize(
    "speech", [b"GET / HTTP/1.1\r\n\r\n", HELLO_OF_RPC, os.urandom(600)], ids=["http", "rpc", "noise"]
)
def test_what_is_not_tls_is_refused(speech: bytes) -> None:
    ours, theirs = socket.socketpair()
    with closing(worker_side(ours)) as worker, theirs:
        theirs.sendall(speech)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ChannelError):
            worker.handshake(HANG)


def test_a_silent_client_is_cut_off_before_the_handshake_would_be() -> None:
    ours, theirs = socket.socketpair()
    with closing(worker_side(ours)) as worker, theirs, pytest.raises(ChannelError, match="too long"):
        worker.handshake(HANG * 100, first_byte=0.1)


def test_a_client_that_dribbles_is_cut_off() -> None:
    hello = bytes.fromhex("16030101000100")  # a record of 256 bytes begins
    ours, theirs = socket.socketpair()
    gone = threading.Event()

    def dribble() -> int:
        sent = 0
        with suppress(OSError):
            while not gone.is_set() and sent < 200:
                sent += theirs.send(hello[sent : sent + 1] or b"\0")
                gone.wait(0.05)
        return sent

    with closing(worker_side(ours)) as worker, theirs, ThreadPoolExecutor() as pool:
        dribbled = pool.submit(dribble)
        with pytest.raises(ChannelError, match="took too long"):
            worker.handshake(0.5, first_byte=0.3)
        gone.set()
        assert 1 < dribbled.result(HANG) < 200


def test_the_limits_cut_a_dribbling_client_off_within_five_seconds() -> None:
    assert module.FIRST_BYTE_TIMEOUT < module.HANDSHAKE_TIMEOUT
    assert module.HANDSHAKE_TIMEOUT + module.CLOSE_TIMEOUT <= 5


def test_little_is_taken_from_a_client_that_has_not_proved_itself() -> None:
    """A ClientHello that claims 131,000 bytes, in records of 16 KiB: TLS allows it, and would store it."""
    record = b"\x16\x03\x01\x40\x00"
    flood = record + b"\x01\x01\xff\xb8\x03\x03" + bytes(16384 - 6) + (record + bytes(16384)) * 6
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
    with closing(worker_side(ours)) as worker, theirs:
        theirs.sendall(flood)
        with pytest.raises(ChannelError, match="handshake is too long"):
            worker.handshake(HANG)
        ours.setblocking(False)
        left = 0
        with suppress(BlockingIOError):
            while more := ours.recv(MIB):
                left += len(more)
    assert left >= len(flood) - module.MAX_HANDSHAKE


def test_a_change_of_keys_is_answered_and_nothing_is_lost(tmp_path: Path) -> None:
    """With OpenSSL's own client: Python's ssl cannot ask for new keys."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("the openssl program is not installed")
    pem = tmp_path / "head.pem"
    pem.write_bytes(
        HEAD.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + HEAD.certificate.public_bytes(Encoding.PEM)
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = subprocess.Popen(
            [openssl, "s_client", "-connect", f"127.0.0.1:{listener.getsockname()[1]}", "-servername", OURS.tag]
            + ["-cert", str(pem), "-key", str(pem), "-msg"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        accepted, _ = listener.accept()
    stdin, stdout = client.stdin, client.stdout
    assert stdin is not None
    assert stdout is not None

    def read_until(text: bytes) -> bool:
        return any(text in line for line in stdout)

    def say(line: bytes) -> None:
        stdin.write(line)
        stdin.flush()

    with client, closing(worker_side(accepted)) as worker, ThreadPoolExecutor() as pool:
        try:
            worker.handshake(HANG)
            for number in range(3):
                say(b"K\n")  # new keys, and a request that we take new ones too
                time.sleep(0.1)  # a letter is a command only at the start of what s_client reads at once
                say(b"after %d\n" % number)
                assert worker.read(100) == b"after %d\n" % number
                worker.write(b"and back %d\n" % number)
                assert pool.submit(read_until, b"<<< TLS 1.3, Handshake [length 0005], KeyUpdate").result(HANG)
                assert pool.submit(read_until, b"and back %d" % number).result(HANG)
        finally:
            client.kill()


def test_only_a_worker_cuts_off_who_does_not_acknowledge() -> None:
    """On a head TCP_USER_TIMEOUT would cut off live uploads while rpc-server computes."""
    head, worker = connected()
    with closing(head), closing(worker):
        for channel, limit in ((head, 0), (worker, 20_000)):
            sock = channel._sock
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
            assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [10, 5, 3, limit]


def test_a_hundred_connections_leave_no_thread_and_no_descriptor() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    for number in range(100):
        head, worker = connected()
        head.write(b"hello")
        assert worker.read(5) == b"hello"
        for channel in (head, worker) if number % 2 else (worker, head):
            channel.close()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before
