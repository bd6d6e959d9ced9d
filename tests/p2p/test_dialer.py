"""Goal: candidates are dialled until they lead to a worker, few at once, and rest while that worker is there."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from queue import Empty, SimpleQueue

import pytest

from app.p2p.dialer import FIRST_DELAY, MAX_DELAY, MAX_DIALS, MAX_WARNINGS, MOVED_DELAY, Candidate, Dialer, Found
from app.p2p.frames import Purpose
from app.p2p.link import Address, Greeting, Problem, new_head
from tests.p2p.fake_worker import HANG, FakeWorker, eventually, new_token

_, OURS = new_token()
_, OTHER = new_token()
NOWHERE = Address("127.0.0.1", 1)
"""Nobody listens there, and no connection comes from there either."""
HEAD = new_head(OURS, "desk", Purpose.LIST)


class Dialed:
    """A dialer, and whom it has led to."""

    def __init__(self) -> None:
        self.arrived: SimpleQueue[tuple[object, str]] = SimpleQueue()
        self.tried: list[None] = []
        self.dialer = Dialer(HEAD, self._arrive, self._try)

    def _arrive(self, candidate: Candidate, greeting: Greeting) -> None:
        greeting.close()
        self.arrived.put((candidate.key, greeting.peer.id))

    def _try(self) -> None:
        self.tried.append(None)

    def next(self) -> tuple[object, str]:
        return self.arrived.get(timeout=HANG)


@pytest.fixture
def dialed() -> Iterator[Dialed]:
    made = Dialed()
    yield made
    made.dialer.close()


def peer(*addresses: Address, key: str = "peer", rank: int = 0) -> Candidate:
    return Candidate(key, addresses, Found.PEER, rank)


def announced(*addresses: Address, key: str = "announced", worker_id: str = "") -> Candidate:
    return Candidate(key, addresses, Found.MDNS, worker_id=worker_id)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def black_hole() -> Iterator[tuple[Address, list[socket.socket]]]:
    """A service that takes connections and says nothing, and those that it has."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:

        def accept() -> None:
            with suppress(OSError):
                while True:
                    taken.append(listener.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield Address("127.0.0.1", listener.getsockname()[1]), taken
        listener.shutdown(socket.SHUT_RDWR)
    for sock in taken:
        sock.close()


def test_a_peer_that_comes_later_is_found(dialed: Dialed) -> None:
    port = free_port()
    dialed.dialer.add(peer(Address("127.0.0.1", port)))
    eventually(dialed.dialer.settled)
    [failure] = dialed.dialer.failures()
    assert failure.error.problem is Problem.UNREACHABLE
    with FakeWorker(OURS, port=port):
        assert dialed.next() == ("peer", "box-1")
    assert dialed.dialer.failures() == []


def test_a_candidate_rests_while_its_worker_is_there_and_is_dialled_when_it_is_lost(dialed: Dialed) -> None:
    with FakeWorker(OURS) as worker:
        dialed.dialer.add(announced(worker.address))
        dialed.next()
        dialed.dialer.add(announced(worker.address))  # announced again
        with pytest.raises(Empty):
            dialed.arrived.get(timeout=1.5)
        dialed.dialer.resume(["announced"])
        assert dialed.next() == ("announced", "box-1")


def test_other_addresses_for_a_worker_that_is_there_are_dialled_but_not_each_time() -> None:
    """It may have moved, and anybody can say so."""
    dialed, now = Dialed(), 0.0
    dialer = Dialer(HEAD, dialed._arrive, dialed._try, lambda: now)
    with FakeWorker(OURS) as worker, FakeWorker(OURS, "box-2") as other, closing(dialer):
        dialer.add(announced(worker.address))
        dialed.next()
        for address in [other.address, worker.address] * 4:
            now += MOVED_DELAY / 10
            dialer.add(announced(address))
        with pytest.raises(Empty):
            dialed.arrived.get(timeout=1.5)
        now += MOVED_DELAY
        dialer.add(announced(other.address))
        assert dialed.next() == ("announced", "box-2")


def test_a_worker_that_is_lost_is_dialled_soon_wherever_it_was_said_to_be(dialed: Dialed) -> None:
    with FakeWorker(OURS) as worker:
        dialed.dialer.add(announced(worker.address))
        dialed.next()
        dialed.dialer.add(announced(NOWHERE, worker.address))  # more addresses are no move
        dialed.dialer.add(announced(worker.address))
        with pytest.raises(Empty):
            dialed.arrived.get(timeout=0.1)
        dialed.dialer.resume(["announced"])
        assert dialed.arrived.get(timeout=MAX_DELAY * 0.8) == ("announced", "box-1")


def test_one_that_is_announced_again_and_again_is_dialled_no_faster(dialed: Dialed) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.05)
        here, seen, began = Address("127.0.0.1", listener.getsockname()[1]), 0, time.monotonic()
        for number in range(30):
            dialed.dialer.add(announced(here, *[NOWHERE] * (number % 2)))
            with suppress(TimeoutError):
                while True:
                    listener.accept()[0].close()
                    seen += 1
        assert 1 <= seen <= 2 + (time.monotonic() - began) / FIRST_DELAY


def test_a_worker_lost_at_once_is_dialled_again(dialed: Dialed) -> None:
    """Whoever takes over the connection may lose it before the dial is over."""
    lost = threading.Event()

    def arrive(candidate: Candidate, greeting: Greeting) -> None:
        greeting.close()
        if not lost.is_set():
            lost.set()
            dialer.resume([candidate.key])
        else:
            dialed.arrived.put((candidate.key, greeting.peer.id))

    dialer = Dialer(HEAD, arrive, lambda: None)
    with FakeWorker(OURS) as worker, closing(dialer):
        dialer.add(announced(worker.address))
        assert dialed.next() == ("announced", "box-1")


def test_other_addresses_are_tried(dialed: Dialed) -> None:
    with FakeWorker(OURS) as worker:
        dialed.dialer.add(announced(NOWHERE, worker.address))
        assert dialed.next() == ("announced", "box-1")


def test_of_several_addresses_the_one_where_the_announced_worker_is(dialed: Dialed) -> None:
    with FakeWorker(OURS, "box-1") as first, FakeWorker(OURS, "box-2") as second:
        dialed.dialer.add(announced(first.address, second.address, worker_id="box-2"))
        assert dialed.next() == ("announced", "box-2")


def test_an_announcement_that_leads_to_somebody_else_is_a_hint_all_the_same(dialed: Dialed) -> None:
    with FakeWorker(OURS, "box-1") as worker:
        dialed.dialer.add(announced(worker.address, worker_id="box-2"))
        assert dialed.next() == ("announced", "box-1")


def test_the_most_telling_of_several_problems(dialed: Dialed) -> None:
    with FakeWorker(OTHER) as stranger:
        dialed.dialer.add(peer(stranger.address, NOWHERE))
        eventually(dialed.dialer.failures)
        [failure] = dialed.dialer.failures()
        assert failure.error.problem is Problem.REFUSED


def test_a_candidate_whose_announcement_has_gone_is_not_dialled(dialed: Dialed) -> None:
    port = free_port()
    dialed.dialer.add(announced(Address("127.0.0.1", port)))
    eventually(dialed.dialer.failures)
    dialed.dialer.remove("announced")
    assert dialed.dialer.failures() == []
    with FakeWorker(OURS, port=port), pytest.raises(Empty):
        dialed.arrived.get(timeout=2.5)


def test_a_worker_that_was_there_is_dialled_although_its_announcement_has_gone(dialed: Dialed) -> None:
    with FakeWorker(OURS) as worker:
        dialed.dialer.add(announced(worker.address))
        dialed.next()
        dialed.dialer.remove("announced")
        dialed.dialer.resume(["announced"])
        assert dialed.next() == ("announced", "box-1")


def test_few_are_dialled_at_once_and_peers_before_announcements(dialed: Dialed) -> None:
    with black_hole() as (address, taken), FakeWorker(OURS) as worker:
        for number in range(3 * MAX_DIALS):
            dialed.dialer.add(announced(address, key=str(number)))
        eventually(lambda: len(taken) >= MAX_DIALS)
        dialed.dialer.add(peer(worker.address))
        with pytest.raises(Empty):
            dialed.arrived.get(timeout=0.5)
        assert len(taken) == MAX_DIALS
        taken[0].close()
        assert dialed.next() == ("peer", "box-1")
        assert len(taken) <= MAX_DIALS + 1, "the free place was the peer's"


def test_a_failure_is_told_once_and_invented_announcements_do_not_fill_the_log(
    dialed: Dialed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    nowhere = Address("127.0.0.2", 1)  # no other test's
    dialed.dialer.add(peer(nowhere))
    for number in range(3 * MAX_WARNINGS):
        dialed.dialer.add(announced(nowhere, key=str(number)))
    eventually(lambda: len(dialed.dialer.failures()) == 3 * MAX_WARNINGS + 1)
    eventually(lambda: len(dialed.tried) == 3 * MAX_WARNINGS + 1)
    lines = [record.getMessage() for record in caplog.records if str(nowhere) in record.getMessage()]
    assert lines == [f"{nowhere} cannot be reached: connection refused"] * (MAX_WARNINGS + 1)
