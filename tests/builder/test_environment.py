"""Goal: what a command of build.py needs is in the environment, whatever became of that in the meantime."""

from __future__ import annotations

import shutil
import sys
import venv
from pathlib import Path

import pytest

from builder import environment, steps


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What pip is told to install. The index is not asked; making the environment is a directory and its Python."""
    told: list[str] = []

    def create(path: Path, *, with_pip: bool) -> None:
        assert with_pip
        (path / "bin").mkdir(parents=True)
        (path / "bin/python").touch()

    monkeypatch.setattr(venv, "create", create)
    monkeypatch.setattr(environment, "run", lambda what, *_, **__: told.append(what.rpartition(" ")[2]))
    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / "venv/bin/python")
    monkeypatch.setattr(steps, "STAMPS", tmp_path / "stamps")
    return told


def test_each_set_is_installed_once(installed: list[str]) -> None:
    environment.prepare(None, tests=False)
    assert installed == ["build", "app"]
    for _ in range(2):
        environment.prepare(None, tests=True, fuzz=True)
        assert installed == ["build", "app", "test", "fuzz"]


def test_what_was_installed_goes_with_the_environment(
    installed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another Python makes it anew, and then the first one again."""
    environment.prepare(None, tests=True)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "version", "another")
        environment.prepare(None, tests=False)
    for _ in range(2):
        installed.clear()
        environment.prepare(None, tests=True)
        assert installed == ["build", "app", "test"]
        shutil.rmtree(tmp_path / "venv")
