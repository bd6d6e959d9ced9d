"""Goal: whoever enforces a ruleset is left with its rules, on every version of Landlock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.p2p import landlock, privileges
from app.p2p.landlock import Access, Ruleset
from tests.p2p.forked import forked


@pytest.fixture(autouse=True)
def _has_landlock() -> None:
    try:
        landlock.abi()
    except OSError as error:
        pytest.skip(f"this kernel has none: {error.strerror}")


def restricted(rules: dict[Path, Access], body: str, version: int | None = None) -> str:
    """What `body`, an expression, gives with these rules."""

    def run() -> object:
        if version is not None:
            landlock.abi = lambda: version
        privileges.give_up()
        with Ruleset() as ruleset:
            for path, access in rules.items():
                ruleset.allow(str(path), access)
            ruleset.enforce()
        return eval(body, {"os": os, "Path": Path})

    return forked(run)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for name in ("read", "keep", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path


@pytest.mark.parametrize("version", [None, 1, 2, 3, 4, 5, 6])
def test_what_is_allowed_works_and_the_rest_does_not(
    home: Path, version: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if version is not None and version > landlock.abi():
        pytest.skip(f"this kernel has version {landlock.abi()}")
    rules = {home / "read": Access.READ, home / "keep": Access.KEEP, home / "absent": Access.READ}
    tries = {
        "Path('read/file').read_text()": "read",
        "os.listdir('read')": "['file']",
        "Path('read/file').open('a')": "Permission denied",
        "Path('read/new').touch()": "Permission denied",
        "Path('keep/new').write_text('a')": "1",
        "Path('keep/file').write_text('ab')": "2",
        "os.rename('keep/new', 'keep/file')": "None",
        "os.remove('keep/file')": "None",
        "os.mkdir('keep/below')": "None",
        "os.symlink('/', 'keep/link')": "Permission denied",
        "Path('other/file').read_text()": "Permission denied",
        "os.listdir('other')": "Permission denied",
        "os.remove('other/file')": "Permission denied",
    }
    monkeypatch.chdir(home)
    assert {body: restricted(rules, body, version) for body in tries} == tries


def test_a_rule_for_a_file_is_for_that_file(home: Path) -> None:
    rules = {home / "read/file": Access.READ}
    assert restricted(rules, f"Path('{home}/read/file').read_text()") == "read"
    assert restricted(rules, f"os.listdir('{home}/read')") == "Permission denied"


def test_closing_gives_every_descriptor_back(home: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Ruleset() as ruleset:
        ruleset.allow(str(home), Access.READ)
        assert ruleset.pin(str(home / "absent")) is None
        assert len(os.listdir("/proc/self/fd")) == before + 1, "the ruleset's own"
        ruleset.allow("/proc/cpuinfo", Access.READ)
        assert len(os.listdir("/proc/self/fd")) == before + 2, "the kernel may forget what nobody has open there"
    assert len(os.listdir("/proc/self/fd")) == before
