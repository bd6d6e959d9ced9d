"""Goal: a worker keeps its number over restarts, two instances have two, and nothing is taken twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import ExitCode, WorkerError
from app.p2p.worker_id import worker_id


def of(directory: Path, instance: str = "default", port: int = 25052) -> str:
    return worker_id(None, instance, str(directory), port, {}).text


def test_it_survives_restarts_and_ports(tmp_path: Path) -> None:
    first = of(tmp_path / "state")
    assert len(first) == 32
    assert of(tmp_path / "state", port=1) == first
    assert (tmp_path / "state/default.id").stat().st_mode & 0o077 == 0


def test_instances_differ(tmp_path: Path) -> None:
    assert of(tmp_path, "gpu0") != of(tmp_path, "gpu1")


@pytest.mark.parametrize(
    ("environ", "where"),
    [
        ({"STATE_DIRECTORY": "S:/other", "XDG_STATE_HOME": "X", "HOME": "H"}, "S"),
        ({"XDG_STATE_HOME": "X", "HOME": "H"}, "X/worker"),
        ({"HOME": "H"}, "H/.local/state/worker"),
    ],
)
def test_where_it_is_kept(tmp_path: Path, environ: dict[str, str], where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    worker_id(None, "default", None, 1, environ)
    assert (tmp_path / where / "default.id").exists()


def test_the_users_own_is_taken(tmp_path: Path) -> None:
    assert worker_id("left-box", "default", str(tmp_path), 1, {}).text == "left-box"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "instance"), [("a b", "default"), ("", "default"), ("x" * 49, "default"), (None, "../x")]
)
def test_what_cannot_be_an_id(tmp_path: Path, given: str | None, instance: str) -> None:
    with pytest.raises(WorkerError, match="cannot be used") as caught:
        worker_id(given, instance, str(tmp_path), 1, {})
    assert caught.value.code == ExitCode.USAGE


def test_half_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "default.id").write_text("12ab")
    first = of(tmp_path)
    assert len(first) == 32
    assert of(tmp_path) == first


def test_where_nothing_can_be_kept_it_is_derived_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    blocked = tmp_path / "file/below"
    first = of(blocked)
    assert len(first) == 32
    assert of(blocked) == first
    assert len({first, of(blocked, "gpu1"), of(blocked, port=1)}) == 3
    assert "cannot keep the worker id" in caplog.text


def test_one_instance_runs_once(tmp_path: Path) -> None:
    script = (
        "import sys; from app.p2p.worker_id import worker_id\n"
        "held = worker_id(None, 'default', sys.argv[1], 1, {}); print(held.text, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        held = first.stdout.readline().strip()
        with pytest.raises(WorkerError, match="runs already") as caught:
            of(tmp_path)
        assert "--instance" in caught.value.hint
    assert of(tmp_path) == held
