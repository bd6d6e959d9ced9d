"""Goal: llama-server is started again when that can help, ever more slowly, and never when it cannot."""

from __future__ import annotations

import signal

import pytest

from app.p2p.backoff import MAX_DELAY, STEADY
from app.p2p.restarts import Restarts


class Clock:
    """Time that passes when the test says so."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("status", [1, 2, 0, -signal.SIGABRT])
def test_an_end_before_it_was_ever_ready_is_the_last_one(clock: Clock, status: int) -> None:
    assert Restarts(True, clock).ended(status, lost_worker=False) is None


@pytest.mark.parametrize("status", [1, -signal.SIGABRT, 0])
def test_a_lost_worker_is_a_reason_also_while_the_model_is_loaded(clock: Clock, status: int) -> None:
    assert Restarts(True, clock).ended(status, lost_worker=True) == 1.0


def test_a_crash_after_it_was_ready_is_a_reason_and_an_end_in_order_is_none(clock: Clock) -> None:
    restarts = Restarts(True, clock)
    restarts.ready()
    assert restarts.ended(-signal.SIGSEGV, lost_worker=False) == 1.0
    restarts.ready()
    assert restarts.ended(0, lost_worker=False) is None


def test_arguments_that_were_good_once_are_tried_again(clock: Clock) -> None:
    restarts = Restarts(True, clock)
    restarts.ready()
    assert restarts.ended(-signal.SIGABRT, lost_worker=True) == 1.0
    # Such as a model that is too large for those that are left: the other one may come back.
    assert restarts.ended(1, lost_worker=False) == 2.0


def test_the_pause_doubles_up_to_its_limit(clock: Clock) -> None:
    restarts = Restarts(True, clock)
    delays = [restarts.ended(-signal.SIGABRT, lost_worker=True) for _ in range(7)]
    assert delays == [1.0, 2.0, 4.0, 8.0, 16.0, MAX_DELAY, MAX_DELAY]


def test_a_minute_of_being_ready_makes_it_short_again(clock: Clock) -> None:
    restarts = Restarts(True, clock)
    for seconds, expected in ((STEADY - 1, 1.0), (STEADY - 1, 2.0), (STEADY, 1.0), (0.0, 2.0)):
        restarts.ready()
        clock.now += seconds
        assert restarts.ended(-signal.SIGABRT, lost_worker=True) == expected


def test_the_time_of_a_start_that_failed_counts_for_nothing(clock: Clock) -> None:
    restarts = Restarts(True, clock)
    restarts.ready()
    assert restarts.ended(-signal.SIGABRT, lost_worker=True) == 1.0
    clock.now += 10 * STEADY
    assert restarts.ended(1, lost_worker=False) == 2.0


def test_never_when_the_user_wants_none(clock: Clock) -> None:
    restarts = Restarts(False, clock)
    restarts.ready()
    assert restarts.ended(-signal.SIGABRT, lost_worker=True) is None
