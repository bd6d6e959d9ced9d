"""Goal: every job is run, some at once, and the first failure is told after all have ended."""

from __future__ import annotations

import os
from functools import partial
from threading import Barrier, Thread

import pytest

from app import parallel


def test_every_job_is_run_once() -> None:
    done: list[int] = []
    parallel.run(partial(done.append, number) for number in range(100))
    assert sorted(done) == list(range(100))


def test_nothing_to_do() -> None:
    parallel.run([])


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="this machine has one processor")
def test_two_at_once() -> None:
    meet = Barrier(2)
    parallel.run([partial(meet.wait, 30)] * 2)


def test_where_no_thread_can_be_had_the_work_is_done_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Thread, "start", refuse)
    done: list[int] = []
    parallel.run(partial(done.append, number) for number in range(5))
    assert done == list(range(5))


def test_the_first_failure_is_raised_when_all_have_ended() -> None:
    done: list[int] = []

    def fail(number: int) -> None:
        raise ValueError(number)

    jobs = [partial(done.append, 0), partial(fail, 1), partial(done.append, 2), partial(fail, 3)]
    with pytest.raises(ValueError, match="1"):
        parallel.run(jobs)
    assert done == [0, 2]
