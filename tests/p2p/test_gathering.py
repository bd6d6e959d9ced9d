"""Goal: a head that knows its llama.cpp takes the workers that it can use, and names the others; none can keep it.

For how many it waits, and how long: test_session.py and test_serving.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from app.errors import WorkerError
from app.options import ConnectOptions
from app.p2p.dialer import Candidate, Found
from app.p2p.events import Events
from app.p2p.frames import Purpose
from app.p2p.gathering import Gathering, Stopped
from app.p2p.link import new_head
from app.p2p.roster import News, Roster
from tests.p2p.fake_worker import READY, FakeWorker, new_token
from tests.p2p.test_events import STOP, changed


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
