"""Goal: a local port is the worker's server for its user, and what is in the way is said in words that help."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest

from app.errors import WorkerError
from app.p2p.dialer import Candidate, Found
from app.p2p.frames import Busy, Purpose, Refused
from app.p2p.link import new_head
from app.p2p.pump import Traffic
from app.p2p.roster import Change, Roster
from app.p2p.tunnel import MAX_CONNECTIONS, Broke, Tunnels
from tests.conftest import needs_root, nobody
from tests.p2p.fake_worker import HANG, FakeWorker, eventually, new_token

_, OURS = new_token()
HEAD = new_head(OURS, "desk", Purpose.CONNECT)


def free_ports() -> int:
    """The first of some ports that are free at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return min(port, 60_000)


class Setup:
    """A roster and its tunnels."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.broke: list[Broke] = []
        self.roster = Roster(HEAD, self.changes.append)
        self.tunnels = Tunnels(HEAD, self.roster.worker, free_ports(), self.broke.append)

    def find(self, *workers: FakeWorker) -> None:
        for rank, worker in enumerate(workers):
            self.roster.add(Candidate(worker.address, (worker.address,), Found.PEER, rank))
        eventually(lambda: self.there() == len(workers))

    def there(self) -> int:
        return sum(worker.there for worker in self.roster.workers())

    def connect(self, place: int = 0) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.tunnels.open(place).port), timeout=HANG)


@pytest.fixture
def setup() -> Iterator[Setup]:
    made = Setup()
    yield made
    made.tunnels.close()
    made.roster.close()


@pytest.fixture
def worker(setup: Setup) -> Iterator[FakeWorker]:
    with FakeWorker(OURS, "box-1") as made:
        setup.find(made)
        yield made


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = sock.recv(count - len(data))
        assert more, "it ended early"
        data += more
    return data


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end has closed, whatever it had sent before."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "app.p2p.tunnel"]


def test_bytes_pass_both_ways_and_are_counted(setup: Setup, worker: FakeWorker) -> None:
    data = os.urandom(3_000_000)
    with setup.connect() as first, setup.connect() as second:
        for client in (first, second):
            client.sendall(data[:1000])
            assert receive(client, 1000) == data[:1000]
        eventually(lambda: setup.tunnels.open(0).traffic == Traffic(2000, 2000))
    with setup.connect() as third:
        third.sendall(data[:1_000_000])
        assert receive(third, 1_000_000) == data[:1_000_000]
    eventually(lambda: setup.tunnels.open(0).traffic == Traffic(1_002_000, 1_002_000))


def test_what_the_server_says_first_arrives(setup: Setup) -> None:
    """It may come together with the ok."""
    with FakeWorker(OURS, serve=lambda talk: talk.channel.write(b"hello from the server")) as eager:
        setup.find(eager)
        with setup.connect() as client:
            assert receive(client, 21) == b"hello from the server"


def test_each_worker_has_its_port_and_keeps_it_when_it_restarts(setup: Setup) -> None:
    with FakeWorker(OURS, "box-1") as one, FakeWorker(OURS, "box-2") as two:
        setup.find(one, two)
        places = {worker.id: worker.place for worker in setup.roster.workers()}
        ports = {id: setup.tunnels.open(place).port for id, place in places.items()}
        assert len(set(ports.values())) == 2
        one.kill()
        eventually(lambda: setup.there() == 1)
        with FakeWorker(OURS, "box-1", port=one.port) as again:
            eventually(lambda: setup.there() == 2)
            assert setup.tunnels.open(places["box-1"]).port == ports["box-1"]
            with setup.connect(places["box-1"]) as client:
                client.sendall(b"again")
                assert receive(client, 5) == b"again"
            assert bytes(again.received) == b"again"


def test_a_port_that_is_taken_is_passed_over(setup: Setup, worker: FakeWorker) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        tunnels = Tunnels(HEAD, setup.roster.worker, port, setup.broke.append)
        assert tunnels.open(0).port > port
        tunnels.close()


def test_ports_can_run_out(setup: Setup, worker: FakeWorker) -> None:
    tunnels = Tunnels(HEAD, setup.roster.worker, 65535, setup.broke.append)
    with socket.create_server(("127.0.0.1", 65535)), pytest.raises(WorkerError) as caught:
        tunnels.open(0)
    assert "65535" in caught.value.message
    assert "--base-port" in caught.value.hint


def test_a_busy_worker_is_told_of_with_its_holder(
    setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    worker.answer = Busy("other-desk", 42)
    with setup.connect() as client:
        client.sendall(b"hello?")
        assert is_closed(client)
    eventually(lambda: said(caplog))
    assert "box-1 is busy: other-desk has had it for 42 s" in said(caplog)[0]
    assert worker.received == b""


def test_a_refusal_is_told_of(setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    worker.answer = Refused("too many connections are waiting")
    with setup.connect() as client:
        assert is_closed(client)
    eventually(lambda: said(caplog))
    assert "box-1 refused the connection: too many connections are waiting" in said(caplog)[0]


def test_a_connection_waits_for_its_turn(setup: Setup, worker: FakeWorker) -> None:
    worker.gate.clear()
    with setup.connect() as client:
        client.sendall(b"patience")
        time.sleep(1.5)  # longer than it looks after the local program
        assert worker.received == b""
        worker.gate.set()
        assert receive(client, 8) == b"patience"


def test_a_program_that_gives_up_ends_its_wait(
    setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    worker.gate.clear()
    tunnel = setup.tunnels.open(0)
    with setup.connect() as client:
        client.sendall(b"never mind")
        eventually(lambda: worker.asked)
    eventually(lambda: tunnel.connections == 0)
    worker.gate.set()
    assert worker.received == b""
    assert said(caplog) == []


def test_a_worker_that_is_not_there(setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    worker.kill()
    eventually(lambda: setup.there() == 0)
    caplog.clear()
    for _ in range(2):
        with setup.connect() as client:
            assert is_closed(client)
    eventually(lambda: len([line for line in said(caplog) if "box-1 is not there" in line]) == 2)
    eventually(lambda: setup.broke == [Broke(0), Broke(0)])


def test_a_tunnel_that_breaks_is_told_of(setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    with setup.connect() as client:
        client.sendall(b"x")
        receive(client, 1)
        worker.kill()
        assert is_closed(client)
    eventually(lambda: setup.broke == [Broke(0)])
    assert any("the tunnel to box-1 was cut off" in line for line in said(caplog))


def test_a_program_that_is_done_is_nothing_to_tell_of(
    setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with setup.connect() as client:
            client.sendall(b"x")
            receive(client, 1)
    eventually(lambda: setup.tunnels.open(0).connections == 0)
    assert said(caplog) == []
    assert setup.broke == []


def test_a_cut_frees_connections_that_tcp_holds(setup: Setup, worker: FakeWorker) -> None:
    with setup.connect() as client:
        client.sendall(b"x")
        receive(client, 1)
        setup.tunnels.open(0).cut()
        assert is_closed(client)


def test_another_process_in_the_workers_place_gets_nothing(
    setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    """A clone took the port, and the first one's link still stands."""
    worker.stop_listening()
    with FakeWorker(OURS, "box-1", port=worker.port) as usurper:
        with setup.connect() as client:
            client.sendall(b"weights")
            assert is_closed(client)
        eventually(lambda: said(caplog))
        assert "another process answers in its place" in said(caplog)[0]
        assert (usurper.asked, bytes(usurper.received)) == (0, b"")


@needs_root
def test_another_user_gets_nothing_through(setup: Setup, worker: FakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    port = setup.tunnels.open(0).port
    pid = os.fork()
    if pid == 0:
        os.setuid(nobody)
        client = socket.create_connection(("127.0.0.1", port))
        client.sendall(b"mine")
        os._exit(0 if is_closed(client) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (worker.asked, bytes(worker.received)) == (0, b"")
    assert f"uid {nobody}" in said(caplog)[0]


def test_a_flood_of_local_connections_is_bounded(setup: Setup, worker: FakeWorker) -> None:
    worker.gate.clear()
    tunnel = setup.tunnels.open(0)
    clients = [setup.connect() for _ in range(MAX_CONNECTIONS)]
    eventually(lambda: tunnel.connections == MAX_CONNECTIONS)
    with setup.connect() as late:
        assert is_closed(late)
    for client in clients:
        client.close()
    eventually(lambda: tunnel.connections == 0)
    worker.gate.set()
    with setup.connect() as client:
        client.sendall(b"x")
        assert receive(client, 1) == b"x"


def test_an_end_closes_ports_and_connections(setup: Setup, worker: FakeWorker) -> None:
    tunnel = setup.tunnels.open(0)
    with setup.connect() as client:
        client.sendall(b"x")
        receive(client, 1)
        setup.tunnels.close()
        assert is_closed(client)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", tunnel.port), timeout=HANG)
