"""Goal: whoever floods drives out itself, an honest newcomer always gets in, and no place is lost."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from app.p2p.gate import MAX_MEMBERS, MAX_STRANGERS, MAX_STRANGERS_PER_SOURCE, Gate, Refusals


class Caller:
    """A connection: our end, and whether the gate has ended it."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)

    @property
    def sent_away(self) -> bool:
        try:
            return self.theirs.recv(1) == b""
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def callers() -> Iterator[list[Caller]]:
    made: list[Caller] = []
    yield made
    for caller in made:
        caller.close()


def call(callers: list[Caller]) -> Caller:
    callers.append(Caller())
    return callers[-1]


def test_a_source_that_floods_drives_out_itself(callers: list[Caller]) -> None:
    gate = Gate()
    honest = call(callers)
    gate.enter(honest.ours, "10.0.0.1")
    flood = [call(callers) for _ in range(5 * MAX_STRANGERS)]
    for caller in flood:
        gate.enter(caller.ours, "10.0.0.66")
    assert not honest.sent_away
    assert [caller.sent_away for caller in flood] == [True] * (len(flood) - MAX_STRANGERS_PER_SOURCE) + [
        False
    ] * MAX_STRANGERS_PER_SOURCE


@pytest.mark.parametrize(
    ("addresses", "one"),
    [
        ([f"2001:db8::{number:x}" for number in range(1, 100)], True),
        ([f"2001:db8:0:{number:x}::1" for number in range(1, 60)], False),
        (["::ffff:10.0.0.5", "10.0.0.5"] * 40, True),
        ([f"fe80::{number:x}%eth0" for number in range(1, 100)], True),
    ],
)
def test_what_one_machine_can_choose_from_is_one_source(callers: list[Caller], addresses: list[str], one: bool) -> None:
    gate = Gate()
    for address in addresses:
        gate.enter(call(callers).ours, address)
    assert any(caller.sent_away for caller in callers) == one


def test_when_all_places_are_taken_the_oldest_goes(callers: list[Caller]) -> None:
    gate = Gate()
    for number in range(MAX_STRANGERS + 3):
        gate.enter(call(callers).ours, f"10.0.1.{number}")
    assert [caller.sent_away for caller in callers] == [True] * 3 + [False] * MAX_STRANGERS


def test_a_flood_from_some_dozens_of_sources_drives_out_itself(callers: list[Caller]) -> None:
    """An honest head has one connection in the making, and is not driven out by however many come meanwhile."""
    gate = Gate()
    honest = call(callers)
    gate.enter(honest.ours, "10.0.0.1")
    for number in range(10 * MAX_STRANGERS):
        gate.enter(call(callers).ours, f"10.0.1.{number % 50}")
    assert not honest.sent_away


def test_members_take_no_place_of_strangers_and_are_bounded(callers: list[Caller]) -> None:
    gate = Gate()
    proved = []
    for number in range(MAX_MEMBERS + 2):
        visit = gate.enter(call(callers).ours, "10.0.0.1")
        proved.append(gate.prove(visit))
        if number == 5:
            gate.leave(visit)
    assert proved == [True] * (MAX_MEMBERS + 1) + [False]
    assert not any(caller.sent_away for caller in callers)


def test_places_come_back(callers: list[Caller]) -> None:
    gate = Gate()
    for _ in range(3 * MAX_STRANGERS):
        caller = call(callers)
        gate.leave(gate.enter(caller.ours, "10.0.0.1"))
    assert not any(caller.sent_away for caller in callers)


def test_make_room_sends_the_oldest_stranger_away(callers: list[Caller]) -> None:
    gate = Gate()
    gate.make_room()
    member, first, second = call(callers), call(callers), call(callers)
    gate.prove(gate.enter(member.ours, "10.0.0.1"))
    gate.enter(first.ours, "10.0.0.1")
    gate.enter(second.ours, "10.0.0.2")
    gate.make_room()
    assert [caller.sent_away for caller in (member, first, second)] == [False, True, False]
    gate.clear()
    assert member.sent_away
    assert second.sent_away


def test_many_refusals_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    refusals = Refusals()
    for number in range(100):
        refusals.note(f"10.0.0.{number}", "token refused")
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "1 connection(s) without the right token refused, the last from 10.0.0.0"
    ]
