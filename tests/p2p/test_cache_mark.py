"""Goal: a mark vouches for its files when its worker was killed, and for nothing while that lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("planted", ["link", "fifo"])
def test_a_mark_that_is_exchanged_while_we_look(tmp_path: Path, planted: str) -> None:
    mark = tmp_path / "mark"
    if planted == "link":
        (tmp_path / "victim").write_text("1" * 16)
        mark.symlink_to(tmp_path / "victim")
    else:
        os.mkfifo(mark)
    with pytest.raises(OSError):  # ELOOP or EAGAIN: passed over, not followed or waited for
        cache_mark._vouched(mark, read=True)
