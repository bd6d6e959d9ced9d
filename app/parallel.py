"""A few jobs at once, for work that leaves Python: hashing, decompressing, writing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from threading import Thread

_AT_ONCE = 4
"""Threads at most: the largest file, which is one thread's, leaves no more for others to win."""


def run(jobs: Iterable[Callable[[], object]]) -> None:
    """Run all `jobs` and wait for them; then raise what the first one of those that failed raised."""
    left = list(reversed(list(jobs)))
    count = len(left)
    failed: list[tuple[int, BaseException]] = []

    def work() -> None:
        while left:
            try:
                job = left.pop()
            except IndexError:  # another thread took the last one
                return
            number = count - len(left)
            try:
                job()
            except BaseException as error:
                failed.append((number, error))

    threads: list[Thread] = []
    for _ in range(min(_AT_ONCE, os.cpu_count() or 1, count) - 1):
        thread = Thread(target=work)
        try:
            thread.start()
        except RuntimeError:  # a limit on processes: what there is will do
            break
        threads.append(thread)
    work()
    for thread in threads:
        thread.join()
    if failed:
        raise min(failed, key=lambda failure: failure[0])[1]
