"""Goal: heads with the token get the real rpc-server, one session at a time; nobody else gets a byte to it."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.launch import ServerCommand
from app.p2p import frames, relay, rpc
from app.p2p.channel import Channel, ChannelError
from app.p2p.conversation import Conversation, PeerClosed
from app.p2p.frames import Busy, Bye, Control, Data, Hello, Ok, Ping, Pong, Purpose, Refused, State, Status, Welcome
from app.p2p.identity import Authority, Role, authority, client_context, mint, server_context
from app.p2p.keeper import start_keeper
from app.p2p.lender import Lender
from app.p2p.listening import listen
from app.p2p.server import Ready
from app.p2p.supervisor import Supervisor
from app.p2p.token import generate, network, parse

LIMIT = 20.0
"""Seconds: a guard against hanging."""

HELLO = b"\x0e" + struct.pack("<Q", 24) + bytes(24)


def new_network() -> Authority:
    return authority(network(parse(generate())))


@dataclass
class Worker:
    """A relay in front of a real rpc-server."""

    port: int
    authority: Authority
    server: Supervisor
    relay: relay.Relay


@pytest.fixture(scope="module")
def worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    command = _server_command()
    keeper = start_keeper("auto")
    lender = Lender()
    server = Supervisor(
        keeper, lambda: command, rpc.probe, lender.server_changed, start_timeout=LIMIT, echo=lambda line: None
    )
    ours = new_network()
    about = relay.About("worker-1", "box", "0.1.0", "0.5.0", "abc", lambda: "on")
    served = relay.Relay(server_context([mint(ours, Role.WORKER, "worker-1")]), about, server, lender)
    listener = listen("127.0.0.1", 0)
    lender.start(server)
    served.start([listener])
    server.start()
    deadline = time.monotonic() + LIMIT
    while not isinstance(server.state, Ready):
        assert time.monotonic() < deadline, server.state
        time.sleep(0.02)
    port = listener.getsockname()[1]
    yield Worker(port, ours, server, served)
    served.stop()
    server.stop()
    keeper.close()


def _server_command() -> ServerCommand:
    named = os.environ.get("WORKER_TEST_SERVER")
    if not named:
        pytest.skip("WORKER_TEST_SERVER names no rpc-server")
    server = Path(named).resolve(strict=True)
    return ServerCommand([str(server)], {"HOME": "/dev/null"}, server.parent)


class Head:
    """One head process: a certificate and a session."""

    def __init__(self, worker: Worker, name: str = "desk", ca: Authority | None = None) -> None:
        self._worker = worker
        self._ca = ca or worker.authority
        self._context = client_context(mint(self._ca, Role.HEAD, "head-1"))
        self.session = f"{id(self):032x}"
        self.name = name

    def dial(self) -> Conversation:
        """A connection on which the worker has spoken."""
        sock = socket.create_connection(("127.0.0.1", self._worker.port), timeout=LIMIT)
        channel = Channel(sock, self._context, server_side=False, server_hostname=self._ca.tag)
        try:
            channel.handshake(LIMIT)
            talk = Conversation(channel)
            assert talk.receive(Welcome, timeout=LIMIT) == Welcome(frames.PROTOCOL)
        except BaseException:
            channel.close()
            raise
        return talk

    @contextmanager
    def control(self, purpose: Purpose = Purpose.CONNECT) -> Iterator[Conversation]:
        talk = self.dial()
        try:
            talk.send(Control(1, self.session, self.name, "0.1.0", purpose))
            yield talk
        finally:
            talk.channel.close()

    def ask(self, session: str | None = None) -> tuple[Conversation, Ok | Busy | Refused]:
        """A data connection and the worker's answer."""
        talk = self.dial()
        talk.send(Data(1, session or self.session))
        answer = talk.receive(Ok, Busy, Refused, timeout=LIMIT)
        assert isinstance(answer, (Ok, Busy, Refused))
        return talk, answer


def hello_of(talk: Conversation) -> Hello:
    while not isinstance(message := talk.receive(Hello, Status, Ping, timeout=LIMIT), Hello):
        pass
    return message


def until(talk: Conversation, state: State) -> Status:
    """The first status with `state`."""
    while True:
        message = talk.receive(Status, Ping, timeout=LIMIT)
        if isinstance(message, Status) and message.state is state:
            return message


def rpc_hello(talk: Conversation) -> bytes:
    """What the server behind a data connection answers to a HELLO."""
    talk.channel.write(HELLO)
    answer = talk.rest()
    while len(answer) < 36:
        more = talk.channel.read(36 - len(answer), LIMIT)
        assert more
        answer += more
    return answer


@contextmanager
def free(worker: Worker) -> Iterator[Head]:
    """A head that comes when nobody holds the server any more."""
    head = Head(worker)
    with head.control() as talk:
        hello = hello_of(talk)
        if hello.status.state is not State.READY:
            until(talk, State.READY)
        yield head


def test_the_hello_tells_the_real_servers_devices(worker: Worker) -> None:
    with Head(worker).control(Purpose.LIST) as talk:
        hello = hello_of(talk)
    assert (hello.id, hello.name, hello.llama_cpp_commit) == ("worker-1", "box", "abc")
    assert hello.status.rpc == "7.0.0"
    (device,) = hello.status.devices
    assert device.name == "CPU"
    assert 0 < device.free <= device.total


def test_a_data_connection_is_the_servers(worker: Worker) -> None:
    with free(worker) as head:
        talk, answer = head.ask()
        assert answer == Ok()
        assert rpc_hello(talk)[8:11] == bytes([7, 0, 0])
        talk.channel.close()


def test_a_second_head_is_told_busy_and_served_when_the_first_has_left(worker: Worker) -> None:
    second = Head(worker, "other")
    with second.control() as watching:
        hello_of(watching)
        with free(worker) as first:
            data, answer = first.ask()
            assert answer == Ok()
            status = until(watching, State.BUSY)
            assert status.holder == "desk"
            talk, answer = second.ask()
            assert isinstance(answer, Busy)
            assert answer.holder == "desk"
            talk.channel.close()
            data.channel.close()
            # In the gap between the first one's connections it is still his.
            talk, answer = second.ask()
            assert isinstance(answer, Busy)
            talk.channel.close()
            for _ in range(5):
                data, answer = first.ask()
                assert answer == Ok(), "the first head was refused in its own lease"
                assert rpc_hello(data)[8] == 7
                data.channel.close()
        until(watching, State.READY)
        talk, answer = second.ask()
        assert answer == Ok()
        assert rpc_hello(talk)[8] == 7
        talk.channel.close()


def test_within_a_lease_connections_wait_for_their_turn(worker: Worker) -> None:
    with free(worker) as head:
        first, answer = head.ask()
        assert answer == Ok()
        got: list[object] = []

        def wait() -> None:
            talk, reply = head.ask()
            got.append(reply)
            got.append(rpc_hello(talk)[8])
            talk.channel.close()

        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.3)
        assert got == [], "a second connection was let through to a server of one"
        first.channel.close()
        waiting.join(LIMIT)
        assert got == [Ok(), 7]


def test_a_head_that_vanishes_frees_the_server(worker: Worker) -> None:
    with Head(worker, "watcher").control(Purpose.LIST) as watching:
        hello_of(watching)
        gone = Head(worker, "gone")
        talk = gone.dial()
        talk.send(Control(1, gone.session, gone.name, "0", Purpose.CONNECT))
        hello_of(talk)
        data, answer = gone.ask()
        assert answer == Ok()
        until(watching, State.BUSY)
        talk.channel.close()  # the control connection alone; the data connection is cut by the worker
        until(watching, State.READY)
        with pytest.raises(ChannelError):
            while data.channel.read(1000, LIMIT):
                pass
            raise ChannelError("it said goodbye")
        data.channel.close()


def test_a_session_opens_nothing_for_another_certificate(worker: Worker) -> None:
    with free(worker) as head:
        thief = Head(worker, "thief")
        talk, answer = thief.ask(head.session)
        assert isinstance(answer, Refused)
        talk.channel.close()


def test_who_only_looks_gets_no_server(worker: Worker) -> None:
    head = Head(worker)
    with head.control(Purpose.LIST) as talk:
        hello_of(talk)
        data, answer = head.ask()
        assert isinstance(answer, Refused)
        data.channel.close()


def test_pings_are_answered(worker: Worker) -> None:
    with Head(worker).control(Purpose.LIST) as talk:
        hello_of(talk)
        talk.send(Ping())
        while not isinstance(talk.receive(Pong, Ping, Status, timeout=LIMIT), Pong):
            pass


def test_another_network_is_refused_and_the_server_not_dialled(worker: Worker) -> None:
    dialled: list[object] = []
    dial = worker.server.dial
    worker.server.dial = lambda timeout: dialled.append(timeout) or dial(timeout)  # type: ignore[method-assign, func-returns-value]
    try:
        for _ in range(50):
            with pytest.raises((ChannelError, PeerClosed, ConnectionError)):
                Head(worker, ca=new_network()).dial()
        stranger = Head(worker, ca=new_network())
        stranger._ca = worker.authority  # names the right network, has the wrong key
        for _ in range(50):
            with pytest.raises((ChannelError, PeerClosed, ConnectionError)):
                stranger.dial()
    finally:
        worker.server.dial = dial  # type: ignore[method-assign]
    assert dialled == []


@pytest.mark.parametrize(
    "first", [HELLO, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), bytes(20_000), b""]
)
def test_what_is_no_tls_is_cut_off(worker: Worker, first: bytes) -> None:
    with socket.create_connection(("127.0.0.1", worker.port), timeout=LIMIT) as client:
        client.sendall(first)
        received = b""
        with pytest.raises((ConnectionResetError, StopIteration)):
            while more := client.recv(4096):
                received += more
            raise StopIteration
    assert b"\x1c" not in received[:1], "that was rpc-server's answer"
    assert len(received) < 100


def test_tls_1_2_and_no_certificate_are_refused(worker: Worker) -> None:
    for version, leaf in ((ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, False)):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", worker.port), timeout=LIMIT) as plain,
            pytest.raises((ssl.SSLError, ConnectionError)),
            context.wrap_socket(plain, server_hostname=worker.authority.tag) as tls,
        ):
            tls.sendall(HELLO)
            assert tls.recv(100), leaf
            raise AssertionError("it was answered")


def test_a_message_that_may_not_come_ends_the_connection(worker: Worker) -> None:
    talk = Head(worker).dial()
    talk.send(Pong())
    with pytest.raises((PeerClosed, ChannelError)):
        talk.receive(Hello, timeout=LIMIT)
    talk.channel.close()


def test_a_frame_that_is_too_long_is_not_read(worker: Worker) -> None:
    talk = Head(worker).dial()
    talk.channel.write((frames.MAX_FRAME + 1).to_bytes(4, "big"))
    with pytest.raises((PeerClosed, ChannelError)):
        talk.receive(Hello, timeout=LIMIT)
    talk.channel.close()


def test_a_killed_server_comes_back_for_the_connection_that_waits(worker: Worker) -> None:
    with free(worker) as head:
        data, answer = head.ask()
        assert answer == Ok()
        child = worker.server._child
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        while isinstance(worker.server.state, Ready):  # a connection that is lent before that is cut with the others
            time.sleep(0.01)
        again, answer = head.ask()
        assert answer == Ok()
        assert rpc_hello(again)[8] == 7
        data.channel.close()
        again.channel.close()


def test_a_server_that_hangs_in_mid_upload_is_started_again_for_the_next_head(worker: Worker) -> None:
    """It reads nothing, so the relay blocks in mid-write; the head leaves, and the lease must not stay."""
    with Head(worker, "watcher").control(Purpose.LIST) as watching:
        hello_of(watching)
        with free(worker) as head:
            data, answer = head.ask()
            assert answer == Ok()
            child = worker.server._child
            assert child is not None
            os.kill(child.pid, signal.SIGSTOP)
            data.channel._sock.settimeout(1)
            with suppress(ChannelError):
                # SET_TENSOR of 64 MiB, which the server will not read.
                data.channel.write(HELLO + b"\x06" + struct.pack("<Q", 64 << 20) + bytes(64 << 20))
        until(watching, State.READY)
        data.channel.close()
    with free(worker) as head:
        data, answer = head.ask()
        assert answer == Ok()
        assert rpc_hello(data)[8] == 7
        data.channel.close()


def test_stop_says_goodbye() -> None:
    """On a worker of its own, without a server: it is starting for ever."""
    lender = Lender()
    ours = new_network()

    class Never:
        state = None

    never: object = Never()
    about = relay.About("w", "box", "0", "", "", str)
    served = relay.Relay(server_context([mint(ours, Role.WORKER, "w")]), about, never, lender)  # type: ignore[arg-type]
    listener = listen("127.0.0.1", 0)
    lender.start(never)  # type: ignore[arg-type]
    port = listener.getsockname()[1]
    served.start([listener])
    with Head(Worker(port, ours, never, served)).control(Purpose.LIST) as talk:  # type: ignore[arg-type]
        assert hello_of(talk).status.state is State.STARTING
        served.stop()
        seen: list[object] = []
        with pytest.raises((PeerClosed, ChannelError)):
            while True:
                seen.append(talk.receive(Status, Bye, Ping, timeout=LIMIT))
    assert Bye("the worker stops") in seen
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
