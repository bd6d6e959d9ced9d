"""Goal: a verdict is read again only where it still holds and nobody else can have written it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.backends import verdict
from app.backends.findings import Device, Findings
from tests.conftest import needs_root, nobody

DIGEST = "a" * 64
FOUND = Findings(devices=(Device("CPU", "Some", "CPU", "cpu"),))
NAME = verdict.name_of(DIGEST, {}, ())


@pytest.fixture
def kept(base: Path) -> Path:
    """A base directory with a verdict."""
    base.mkdir(mode=0o700)
    verdict.keep(base, NAME, FOUND)
    return base


def test_it_is_read_as_it_was_kept(kept: Path) -> None:
    assert verdict.read(kept, NAME) == FOUND
    assert [path.name for path in kept.iterdir()] == [NAME]
    assert (kept / NAME).stat().st_mode & 0o777 == 0o600


def test_it_can_be_forgotten(kept: Path) -> None:
    verdict.forget(kept, NAME)
    verdict.forget(kept, NAME)
    assert verdict.read(kept, NAME) is None


def test_a_directory_that_cannot_be_written_costs_only_another_probe(tmp_path: Path) -> None:
    verdict.keep(tmp_path / "missing", NAME, FOUND)
    assert verdict.read(tmp_path / "missing", NAME) is None


@pytest.mark.parametrize("spoil", ["cut", "open", "large", "link", "fifo", "types"])
def test_what_may_be_anothers_is_not_read(kept: Path, spoil: str) -> None:
    file = kept / NAME
    if spoil == "cut":
        file.write_text(file.read_text()[:-3])
    elif spoil == "open":
        file.chmod(0o666)
    elif spoil == "types":
        file.write_text(file.read_text().replace(", 0, 0,", ', "a", "b",'))
    elif spoil == "large":
        file.write_text(file.read_text() + " " * verdict.MAX_SIZE)
    else:
        file.rename(kept / "elsewhere")
        file.symlink_to("elsewhere") if spoil == "link" else os.mkfifo(file)
    assert verdict.read(kept, NAME) is None


def test_the_oldest_of_many_go(kept: Path) -> None:
    names = [verdict.name_of(DIGEST, {"HOME": str(number)}, ()) for number in range(verdict.MOST + 3)]
    verdict.keep(kept, verdict.name_of("b" * 64, {}, ()), FOUND)
    for age, name in enumerate(names):
        verdict.keep(kept, name, FOUND)
        os.utime(kept / name, (age, age))
    last = verdict.name_of(DIGEST, {"HOME": "last"}, ())
    verdict.keep(kept, last, FOUND)
    assert [name for name in (names[0], last) if verdict.read(kept, name) == FOUND] == [last]
    assert len(list(kept.iterdir())) == verdict.MOST + 1, "another payload's stays"


@needs_root
def test_another_users_verdict_is_not_read(kept: Path) -> None:
    os.chown(kept / NAME, nobody, -1)
    assert verdict.read(kept, NAME) is None


@pytest.mark.parametrize(
    "name", ["GGML_VK_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "VK_DRIVER_FILES", "LD_LIBRARY_PATH"]
)
def test_a_variable_that_drivers_read_makes_it_another_machine(name: str) -> None:
    assert verdict.name_of(DIGEST, {name: "1"}, ()) != NAME
    assert verdict.name_of(DIGEST, {"LANG": "C", "XDG_SESSION_ID": "7"}, ()) == NAME


def test_so_does_another_payload_or_a_changed_backend(tmp_path: Path) -> None:
    own = tmp_path / "libggml-cuda.so"
    own.write_text("1")
    before = verdict.name_of(DIGEST, {}, (own,))
    assert before != NAME
    own.write_text("22")
    assert verdict.name_of(DIGEST, {}, (own,)) != before
    assert verdict.name_of("b" * 64, {}, ()).startswith("b" * 64 + ".verdict-")
