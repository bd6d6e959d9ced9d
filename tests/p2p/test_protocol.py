"""Goal: workers that one llama.cpp can use together are told from those that it would refuse, whatever they claim."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.errors import WorkerError
from app.p2p import protocol
from app.p2p.roster import Worker
from tests.p2p.fake_worker import READY
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


@pytest.mark.parametrize(
    ("one", "other", "true"),
    [("7.0.0", "7.0.0", True), ("7.0.0", "7.1.2", True), ("7.0.0", "8.0.0", False), ("7.0.0", "7", False)],
)
def test_whether_some_llama_cpp_can_use_both(one: str, other: str, true: bool) -> None:
    assert protocol.together(one, other) is true
    assert protocol.together(other, one) is true


@pytest.mark.parametrize("other", ["8.0.0", "4.0.1", "nonsense", "", "9" * 128])
def test_different_protocols_are_one_error_that_names_each(other: str) -> None:
    with pytest.raises(WorkerError) as caught:
        protocol.common(speaking(desk="7.0.0", attic=other))
    assert caught.value.message == f"the workers speak different RPC protocols: desk 7.0.0, attic {other}"
