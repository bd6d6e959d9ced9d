"""Goal: one worker is one worker however it is reached, keeps its place, and is not taken for another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from app.p2p.dialer import Candidate, Found
from app.p2p.frames import Data, Hello, Ok, Purpose, Refused
from app.p2p.link import Address, greet, new_head
from app.p2p.roster import MAX_ROUTES, Change, News, Roster, Worker
from tests.p2p.fake_worker import BUSY, HANG, READY, FakeWorker, eventually, new_token

_, OURS = new_token()
HEAD = new_head(OURS, "desk", Purpose.CONNECT)


class Watched:
    """A roster and what it has told."""

    def __init__(self, keep: Callable[[Hello], bool] = lambda _: True) -> None:
        self.changes: list[Change] = []
        self.roster = Roster(HEAD, self.changes.append, keep)

    def news(self) -> list[tuple[News, int]]:
        """Kind and place, without what was only tried or has only changed."""
        return [
            (change.news, change.worker.place)
            for change in self.changes
            if change.worker is not None and change.news is not News.CHANGED
        ]

    def there(self) -> list[Worker]:
        return [worker for worker in self.roster.workers() if worker.there]

    def peers(self, *workers: FakeWorker) -> None:
        """Add each as a `--peer`, in this order, and wait until all are found."""
        for rank, worker in enumerate(workers):
            self.roster.add(Candidate(worker.address, (worker.address,), Found.PEER, rank))
        eventually(lambda: len(self.there()) == len(workers))


def announced(*addresses: Address, key: str = "announced", worker_id: str = "") -> Candidate:
    return Candidate(key, addresses, Found.MDNS, worker_id=worker_id)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "app.p2p.roster"]


@pytest.fixture
def watched() -> Iterator[Watched]:
    made = Watched()
    yield made
    made.roster.close()


def test_a_worker_is_found_and_followed(watched: Watched) -> None:
    with FakeWorker(OURS, "box-1", "Box") as worker:
        watched.peers(worker)
        [found] = watched.roster.workers()
        assert (found.id, found.name, found.status, found.found) == ("box-1", "Box", READY, Found.PEER)
        worker.tell(BUSY)
        eventually(lambda: watched.roster.worker(found.place).status == BUSY)
        assert watched.news() == [(News.FOUND, 0)]


def test_one_that_is_announced_and_named_is_one_worker_whose_session_lives(watched: Watched) -> None:
    with FakeWorker(OURS) as worker:
        for key in "abcdefgh":  # all at once, so that links are opened across each other
            watched.roster.add(announced(worker.address, key=key))
        watched.roster.add(Candidate("peer", (worker.address,), Found.PEER, 3))
        eventually(lambda: len(worker.heads) == 9 and worker.controls == 1)
        assert watched.news() == [(News.FOUND, 0)]
        assert watched.roster.workers()[0].rank == 3
        # For the worker the link that was opened last is the session's: that one must be the one we keep.
        talk = greet(worker.address, HEAD).talk
        talk.send(Data(1, HEAD.session))
        assert isinstance(talk.receive(Ok, Refused, timeout=HANG), Ok)
        talk.channel.close()


def test_what_was_announced_long_ago_is_forgotten(watched: Watched) -> None:
    with FakeWorker(OURS) as worker:
        watched.peers(worker)
        for number in range(MAX_ROUTES + 3):
            elsewhere = Address("127.0.0.1", 1 + number)
            watched.roster.add(announced(worker.address, elsewhere, key=f"restart {number}"))
            eventually(lambda: elsewhere in watched.roster.workers()[0].addresses)  # noqa: B023 - called at once
        addresses = watched.roster.workers()[0].addresses
        assert len([address for address in addresses if address != worker.address]) == MAX_ROUTES
        assert watched.roster.workers()[0].found is Found.PEER


def test_the_order_is_that_of_the_peers_then_name_then_id(watched: Watched) -> None:
    with (
        FakeWorker(OURS, "id-1", "zebra") as zebra,
        FakeWorker(OURS, "id-2", "ape") as ape,
        FakeWorker(OURS, "id-4", "bear") as late_bear,
        FakeWorker(OURS, "id-3", "bear") as bear,
    ):
        watched.roster.add(announced(late_bear.address, key="4"))
        watched.roster.add(announced(bear.address, key="3"))
        eventually(lambda: len(watched.there()) == 2)
        watched.roster.add(Candidate("zebra", (zebra.address,), Found.PEER, 0))
        watched.roster.add(Candidate("ape", (ape.address,), Found.PEER, 1))
        eventually(lambda: len(watched.there()) == 4)
        assert [worker.id for worker in watched.roster.workers()] == ["id-1", "id-2", "id-3", "id-4"]


def test_a_restarted_worker_has_its_place_again(watched: Watched) -> None:
    with FakeWorker(OURS, "box-0") as other, FakeWorker(OURS, "box-1") as first:
        watched.peers(other, first)
        before = next(worker for worker in watched.roster.workers() if worker.id == "box-1")
        first.kill()
        eventually(lambda: (News.LOST, before.place) in watched.news())
        assert len(watched.roster.workers()) == 2
        with FakeWorker(OURS, "box-1", port=first.port):
            eventually(lambda: (News.BACK, before.place) in watched.news())
        after = watched.roster.worker(before.place)
        assert (after.id, after.key != before.key) == ("box-1", True)


def test_a_worker_that_comes_back_elsewhere_has_its_place_again(watched: Watched) -> None:
    with FakeWorker(OURS) as first:
        watched.roster.add(announced(first.address, key="before"))
        eventually(watched.there)
        first.stop()
        watched.roster.remove("before")
        eventually(lambda: not watched.there())
    with FakeWorker(OURS) as second:
        watched.roster.add(announced(second.address, key="after"))
        eventually(watched.there)
        assert watched.news() == [(News.FOUND, 0), (News.LOST, 0), (News.BACK, 0)]
        assert watched.roster.worker(0).address == second.address


def test_a_worker_restarted_before_its_loss_was_noticed_is_not_its_own_clone(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    """Its machine lost power: the old link says nothing, and is not closed."""
    with FakeWorker(OURS) as first:
        watched.roster.add(announced(first.address, key="before"))
        eventually(watched.there)
        first.mute = True
        first.stop_listening()
        with FakeWorker(OURS, port=first.port) as second:
            watched.roster.add(announced(second.address, key="after"))
            eventually(lambda: second.controls and len(watched.news()) > 1)
            assert watched.news() == [(News.FOUND, 0), (News.BACK, 0)]
            assert warnings(caplog) == []


def test_clones_are_two_workers_with_one_warning(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    with FakeWorker(OURS, "box-1") as one, FakeWorker(OURS, "box-1") as two:
        watched.peers(one, two)
        assert [worker.address for worker in watched.roster.workers()] == [one.address, two.address]
        place = watched.roster.workers()[0].place
        one.kill()
        eventually(lambda: (News.LOST, place) in watched.news())
        with FakeWorker(OURS, "box-1", port=one.port):
            eventually(lambda: (News.BACK, place) in watched.news())
        [warning] = warnings(caplog)
        assert "have one id, box-1" in warning
        assert str(one.address) in warning
        assert str(two.address) in warning


def test_two_workers_of_one_name_are_told_of(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    with FakeWorker(OURS, "id-1", "box") as one, FakeWorker(OURS, "id-2", "box") as two:
        watched.peers(one, two)
        [warning] = warnings(caplog)
        assert "two workers are called box" in warning


def test_a_goodbye_does_not_drop_a_live_link(watched: Watched) -> None:
    with FakeWorker(OURS) as worker:
        watched.roster.add(announced(worker.address))
        eventually(watched.there)
        watched.roster.remove("announced")
        worker.tell(BUSY)
        eventually(lambda: watched.roster.worker(0).status == BUSY)
        assert watched.news() == [(News.FOUND, 0)]


def test_swapped_announcements_lead_to_who_tls_proves(watched: Watched) -> None:
    with FakeWorker(OURS, "box-1") as one, FakeWorker(OURS, "box-2") as two:
        watched.roster.add(announced(two.address, key="1", worker_id="box-1"))
        watched.roster.add(announced(one.address, key="2", worker_id="box-2"))
        eventually(lambda: len(watched.there()) == 2)
        assert {worker.id: worker.address for worker in watched.roster.workers()} == {
            "box-1": one.address,
            "box-2": two.address,
        }


def test_a_new_address_is_used_without_waiting_for_the_old_link_to_die(watched: Watched) -> None:
    with FakeWorker(OURS) as worker:
        watched.roster.add(announced(worker.address))
        eventually(watched.there)
        moved = Address("localhost", worker.port)
        watched.roster.add(replace(announced(worker.address), addresses=(moved,)))
        eventually(lambda: len(worker.heads) == 2 and worker.controls == 1)
        assert moved in watched.roster.worker(0).addresses
        assert watched.news() == [(News.FOUND, 0)]


def test_who_is_not_to_be_kept_is_only_looked_at() -> None:
    watched = Watched(keep=lambda hello: hello.id != "box-2")
    with FakeWorker(OURS, "box-1") as kept, FakeWorker(OURS, "box-2") as seen:
        watched.peers(kept, seen)
        eventually(lambda: seen.left == ["seen"])
        assert kept.controls == 1
        assert len(watched.there()) == 2
        watched.roster.close("the head has ended")
        eventually(lambda: kept.left == ["the head has ended"])


def test_failures_are_told_of(watched: Watched) -> None:
    with FakeWorker(OURS) as worker:
        gone = worker.address
    watched.roster.add(Candidate(gone, (gone,), Found.PEER, 0))
    eventually(lambda: [change.news for change in watched.changes] == [News.TRIED])
    assert watched.roster.settled()
    assert [failure.candidate.key for failure in watched.roster.failures()] == [gone]
