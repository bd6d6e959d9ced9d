"""Goal: a word that is no bench is refused with those that there are."""

from __future__ import annotations

import pytest

from bench.__main__ import BENCHES, WHOLE, main


def test_an_unknown_bench_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["relay", "realy"])
    assert "there is no bench 'realy'; there are relay, tokens" in capsys.readouterr().err


def test_a_whole_run_is_made_of_benches() -> None:
    assert set(WHOLE) < set(BENCHES)
