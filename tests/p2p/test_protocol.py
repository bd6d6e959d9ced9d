"""Goal: workers that one llama.cpp can use together are told from those that it would refuse, whatever they claim."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from app.errors import WorkerError
from app.options import ConnectOptions
from app.p2p import protocol
from app.p2p.dialer import Candidate, Found
from app.p2p.frames import Purpose
from app.p2p.gathering import Events, Gathering
from app.p2p.link import new_head
from app.p2p.roster import Roster, Worker
from tests.p2p.fake_worker import READY, FakeWorker, new_token
from tests.p2p.test_listing import HELLO, WORKER


def speaking(**versions: str) -> list[Worker]:
    """A worker for each name."""
    return [
        replace(WORKER, hello=replace(HELLO, name=name), status=replace(READY, rpc=version))
        for name, version in versions.items()
    ]


def test_those_that_a_client_refuses_are_picked_out() -> None:
    workers = speaking(same="7.0.0", patched="7.0.9", newer="7.1.0", other="4.0.1", odd="seven", none="")
    assert [worker.name for worker in protocol.mismatched(workers, "7.0.0")] == ["newer", "other", "odd", "none"]


@pytest.mark.parametrize(
    ("versions", "needed"), [(["7.0.0", "7.0.0"], "7.0.0"), (["7.9.0", "7.10.2", "7.10.0"], "7.10.2")]
)
def test_the_command_needs_the_highest_of_them(versions: list[str], needed: str) -> None:
    assert protocol.common(speaking(**{f"box{at}": version for at, version in enumerate(versions)})) == needed


@pytest.mark.parametrize("other", ["8.0.0", "4.0.1", "nonsense", "", "9" * 128])
def test_different_protocols_are_one_error_that_names_each(other: str) -> None:
    with pytest.raises(WorkerError) as caught:
        protocol.common(speaking(desk="7.0.0", attic=other))
    assert caught.value.message == f"the workers speak different RPC protocols: desk 7.0.0, attic {other}"


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
