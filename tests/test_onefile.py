"""Goal: what PyInstaller's bootloader leaves behind is ours to clean, and nothing else is touched."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from app import onefile


@pytest.fixture
def frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as the bootloader makes one, with us running from it."""
    home = tmp_path / "_MEIabcdef"
    (home / "lib").mkdir(parents=True)
    (home / "lib/libpython.so").write_bytes(b"x")
    (home / "base_library.zip").write_bytes(b"x")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(sys, "_MEIPASS", str(home), raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return home


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_emptied_before_exec_but_still_there(frozen: Path) -> None:
    onefile.mark()
    onefile.empty()
    assert [path.name for path in frozen.iterdir()] == [onefile.MARKER]
    assert (frozen / onefile.MARKER).read_text() == str(os.getpid())


def test_from_source_nothing_happens() -> None:
    assert onefile.home() is None
    onefile.mark()
    onefile.empty()


def test_prune_takes_what_killed_launchers_left(frozen: Path) -> None:
    onefile.mark()
    assert onefile.prune() == [], "the directory of a living process went"
    (frozen / onefile.MARKER).write_text(str(dead_pid()))
    assert onefile.prune() == [frozen]
    assert not frozen.exists()


def test_prune_leaves_other_programs_alone(frozen: Path, tmp_path: Path) -> None:
    (tmp_path / "_MEIlink").symlink_to(frozen)
    (frozen / onefile.MARKER).write_text("not a number")
    other = tmp_path / "_MEIother"
    other.mkdir()
    assert onefile.prune() == []
    assert other.exists()
    assert frozen.exists()
