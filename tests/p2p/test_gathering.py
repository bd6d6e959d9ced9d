"""Goal: a head that knows its llama.cpp takes the workers that it can use, and names the others; none can keep it.

For how many it waits, and how long: test_session.py and test_serving.py.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from app.errors import WorkerError
from app.options import ConnectOptions
from app.p2p.dialer import Candidate, Found
from app.p2p.frames import Hello, Purpose
from app.p2p.gathering import Events, Gathering, Stopped
from app.p2p.link import Address, new_head
from app.p2p.roster import Change, News, Roster, Worker
from app.p2p.signals import Arrived
from tests.p2p.fake_worker import BUSY, READY, FakeWorker, new_token


@contextmanager
def gathering(speaks: str, **versions: str) -> Iterator[Gathering]:
    """Of a head whose llama.cpp speaks that, and finds these workers."""
    _, ours = new_token()
    events = Events()
    options = ConnectOptions(timeout=2.0, only=(), exclude=())
    with ExitStack() as stack:
        roster = Roster(new_head(ours, "desk", Purpose.CONNECT), events.put)
        stack.callback(roster.close)
        for rank, (name, version) in enumerate(versions.items()):
            worker = stack.enter_context(FakeWorker(ours, name, name, status=replace(READY, rpc=version)))
            roster.add(Candidate(worker.address, (worker.address,), Found.PEER, rank))
        yield Gathering(options, roster, events, speaks)


def test_a_head_that_knows_its_llama_cpp_names_those_that_it_refuses_and_takes_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with gathering("7.0.0", attic="4.0.1", desk="7.0.0", shed="7.1.0") as found:
        assert [worker.name for worker in found.workers()] == ["desk"]
    warnings = [record.getMessage() for record in caplog.records if "is left out" in record.getMessage()]
    assert sorted(warnings) == [
        "attic is left out: it speaks RPC protocol 4.0.1, the llama.cpp of this file 7.0.0",
        "shed is left out: it speaks RPC protocol 7.1.0, the llama.cpp of this file 7.0.0",
    ]


def test_where_none_is_left_the_error_names_them() -> None:
    with gathering("7.0.0", attic="4.0.1") as found, pytest.raises(WorkerError) as caught:
        found.workers()
    assert "attic speaks RPC protocol 4.0.1, the llama.cpp of this file 7.0.0" in caught.value.message


ADDRESS = Address("10.0.0.1", 25052)
HELLO = Hello(1, "id-1", "box-1", "0.1.0", "", "", "", READY)
WORKER = Worker(0, "id-1", "key", HELLO, READY, 100.0, ADDRESS, (ADDRESS,), Found.MDNS, 0, there=True)
STOP = Arrived(signal.SIGTERM, by_terminal=False)


def changed(news: News, since: int = 0, place: int = 0) -> Change:
    return Change(news, replace(WORKER, place=place, status=replace(BUSY, since=since)))


def taken(events: Events) -> list[object]:
    """All that there is."""
    return list(iter(lambda: events.next(0.01), None))


def test_of_a_workers_statuses_the_newest_is_kept_and_nothing_else_is_lost() -> None:
    events = Events()
    lasting = [changed(News.FOUND), changed(News.LOST), changed(News.BACK), changed(News.LOST), "what else there is"]
    for number in range(1000):
        events.put(changed(News.CHANGED, number))
        events.put(Change(News.TRIED))
    for event in lasting:
        events.put(event)
    events.put(changed(News.CHANGED, 7, place=1))
    events.put(changed(News.CHANGED, 8))
    assert taken(events) == [Change(News.TRIED), *lasting, changed(News.CHANGED, 7, place=1), changed(News.CHANGED, 8)]


def test_a_signal_comes_first() -> None:
    events = Events()
    events.put(changed(News.FOUND))
    events.put(STOP)
    events.put(changed(News.CHANGED))
    assert taken(events) == [STOP, changed(News.FOUND), changed(News.CHANGED)]


def test_events_that_never_end_do_not_hide_that_the_time_is_over() -> None:
    events = Events()
    events.put(changed(News.FOUND))
    assert events.next(0.0) is None
    assert events.next(None) == changed(News.FOUND)


class Endless(Events):
    """There is always another one."""

    def next(self, timeout: float | None) -> object:
        self.put(changed(News.CHANGED))
        return super().next(timeout)


@pytest.mark.parametrize("patient", [False, True])
def test_a_search_among_workers_that_never_stop_talking_ends(patient: bool) -> None:
    _, ours = new_token()
    events = Endless()
    roster = Roster(new_head(ours, "desk", Purpose.CONNECT), events.put)
    found = Gathering(ConnectOptions(timeout=0.5, only=(), exclude=()), roster, events)
    if patient:
        events.put(STOP)
    with pytest.raises(Stopped if patient else WorkerError):
        found.workers(patient=patient)
    roster.close()
