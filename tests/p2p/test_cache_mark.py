"""Goal: a mark vouches for its files when its worker was killed, and for nothing while that lives."""

from __future__ import annotations

import os
from pathlib import Path

from app.p2p import cache_mark


def test_a_mark_counts_when_its_worker_is_gone(tmp_path: Path) -> None:
    name = cache_mark.new_name()
    held = cache_mark.make(tmp_path, name, {"1" * 16, "2" * 16})
    assert cache_mark.dead(tmp_path, but="") == ([], set())
    os.close(held)
    assert cache_mark.dead(tmp_path, but=name) == ([], set())
    assert cache_mark.dead(tmp_path, but="") == ([name], {"1" * 16, "2" * 16})


def test_a_newer_mark_stands_in_place_of_the_old_one(tmp_path: Path) -> None:
    name = cache_mark.new_name()
    old = cache_mark.make(tmp_path, name, {"1" * 16, "2" * 16})
    new = cache_mark.make(tmp_path, name, {"2" * 16})
    os.close(old)
    assert cache_mark.dead(tmp_path, but="") == ([], set()), "it was not locked from the first moment on"
    os.close(new)
    assert cache_mark.dead(tmp_path, but="") == ([name], {"2" * 16})


def test_only_what_all_of_them_name_counts(tmp_path: Path) -> None:
    for names in ({"1" * 16, "2" * 16}, {"2" * 16, "3" * 16}):
        os.close(cache_mark.make(tmp_path, cache_mark.new_name(), names))
    marks, vouched = cache_mark.dead(tmp_path, but="")
    assert (len(marks), vouched) == (2, {"2" * 16})
