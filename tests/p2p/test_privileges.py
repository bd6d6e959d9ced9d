"""Goal: a process that has given up its privileges has none, gets none back, and can still do a user's work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.p2p import privileges
from tests.p2p.forked import forked


def status_after(line: str) -> str:
    def run() -> str:
        privileges.give_up()
        return next(text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith(line))

    return forked(run).split()[1]


def test_no_program_gives_them_back() -> None:
    assert status_after("NoNewPrivs") == "1"


def test_root_is_left_with_one() -> None:
    expected = "0000000000000002" if os.geteuid() == 0 else "0000000000000000"
    assert status_after("CapEff") == status_after("CapPrm") == expected


def test_root_can_still_write_where_another_user_keeps_things(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    os.chown(tmp_path, 1000, 1000)

    def run() -> int:
        privileges.give_up()
        return (tmp_path / "file").write_text("abc")

    assert forked(run) == "3"


def test_root_cannot_give_its_files_away_any_more(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")

    def run() -> None:
        privileges.give_up()
        os.chown(tmp_path, 1000, 1000)

    assert forked(run) == "Operation not permitted"
