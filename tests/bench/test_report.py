"""Goal: ratios are taken pair by pair, a target is judged by the median, and what was published can be read again."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import report
from bench.report import Row, Target, load, publish, ratio

OURS = Row("up", "GB/s", (3.0, 8.0, 6.0), "worker")
THEIRS = Row("up", "GB/s", (2.0, 4.0, 2.0), "stunnel")


def test_a_ratio_is_of_each_pair() -> None:
    assert ratio(OURS, THEIRS).values == (1.5, 2.0, 3.0)
    assert ratio(OURS, THEIRS).who == "worker / stunnel"


@pytest.mark.parametrize(
    ("target", "held"), [(Target(">=", 2.0), True), (Target(">=", 2.1), False), (Target("<=", 2.0), True)]
)
def test_a_target_is_held_by_the_median(target: Target, held: bool) -> None:
    assert target.held(ratio(OURS, THEIRS, target).median) is held


def test_the_table_tells_the_verdict_and_the_file_keeps_every_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    rows = [OURS, ratio(OURS, THEIRS, Target(">=", 2.5))]
    publish("relay", rows, {"stunnel": "missing: stunnel4"})
    told = capsys.readouterr().out
    assert "missing: stunnel4" in told.replace("\n", " ")
    assert ">= 2.5 MISSED" in told
    facts, kept = load("relay")
    assert facts["stunnel"] == "missing: stunnel4"
    assert [row.values for row in kept] == [row.values for row in rows]
