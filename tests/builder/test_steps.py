"""Goal: a step runs once for the same inputs and again after it broke off; a failure shows its log."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from builder import steps


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STAMPS", tmp_path / "stamps")
    monkeypatch.setattr(steps, "LOGS", tmp_path / "logs")


def test_once(tmp_path: Path) -> None:
    product = tmp_path / "product"
    runs = []

    def make() -> None:
        runs.append(1)
        product.write_text("made")

    assert steps.once("step", "key", [product], make)
    assert not steps.once("step", "key", [product], make)
    assert steps.once("step", "other key", [product], make)
    product.unlink()
    assert steps.once("step", "other key", [product], make)
    assert len(runs) == 3


def test_an_interrupted_step_starts_over(tmp_path: Path) -> None:
    product = tmp_path / "product"
    product.write_text("of an earlier run")
    steps.once("step", "old", [product], lambda: None)

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        steps.once("step", "new", [product], interrupted)
    assert steps.once("step", "old", [product], lambda: None), "the broken step counts as done"


def test_a_failure_shows_the_end_of_the_log_and_where_it_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = "for n in range(100): print('line', n)\nraise SystemExit(3)"
    with pytest.raises(SystemExit):
        steps.run("compiling things", [sys.executable, "-c", script], hint="mend it")
    err = capsys.readouterr().err
    assert "line 99" in err
    assert "line 50" not in err
    assert "compiling things failed with status 3" in err
    assert str(tmp_path / "logs/compiling-things.log") in err
    assert "hint: mend it" in err


def test_a_program_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        steps.run("nothing", ["/nonexistent/program"])
    assert "cannot start /nonexistent/program" in capsys.readouterr().err
