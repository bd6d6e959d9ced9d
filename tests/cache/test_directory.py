"""Goal: the cache is where rpc-server looks for it, and what is removed is what was not used for longest."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from app.cache import directory as cache
from app.cache.directory import adding, cache_directory, entries, make_room, own_directory, shrink, with_cache
from app.errors import WorkerError


def write(directory: Path, digit: str, size: int, used: float) -> str:
    path = directory / (digit * 16)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path.name


def names(directory: Path) -> list[str]:
    return [entry.name[0] for entry in entries(directory)]


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (["-t", "1"], {"LLAMA_CACHE": "/c"}, None),
        (["-c"], {"LLAMA_CACHE": "/c", "HOME": "/h"}, "/c/rpc"),
        (["--cache"], {"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/llama.cpp/rpc"),
        (["-c"], {"LLAMA_CACHE": "", "HOME": "/h"}, "/h/.cache/llama.cpp/rpc"),
    ],
)
def test_where_it_is(arguments: list[str], environ: dict[str, str], expected: str | None) -> None:
    assert cache_directory(arguments, environ) == (Path(expected) if expected else None)


def test_a_relative_path_is_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert own_directory({"LLAMA_CACHE": "here"}) == tmp_path / "here/rpc"


def test_what_was_not_used_for_longest_goes_first(directory: Path) -> None:
    for digit, used in (("a", 300.0), ("b", 100.0), ("c", 200.0)):
        write(directory, digit, 1000, used)
    assert names(directory) == ["b", "c", "a"]
    assert shrink(directory, 3000) == []
    assert [entry.name[0] for entry in shrink(directory, 2999)] == ["b"]
    assert [entry.name[0] for entry in shrink(directory, 0)] == ["c", "a"]


def test_reading_is_use(directory: Path) -> None:
    write(directory, "a", 1, 100.0)
    write(directory, "b", 1, 200.0)
    os.utime(directory / ("a" * 16), (300.0, 100.0))
    assert names(directory) == ["b", "a"]


def test_room_is_made_for_others(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, "a", 1000, 100.0)
    write(directory, "b", 1000, 200.0)
    assert make_room(directory) == []
    monkeypatch.setattr(cache, "spare_room", lambda _directory: -1)
    assert [entry.name[0] for entry in make_room(directory)] == ["a"]


def test_other_files_and_links_are_none_of_the_cache(directory: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (directory / ("a" * 16)).symlink_to(victim)
    (directory / ("b" * 16)).mkdir()
    os.mkfifo(directory / ("c" * 16))
    write(directory, "D", 10, 0.0)
    assert entries(directory) == shrink(directory, 0) == []
    assert victim.read_text() == "precious"
    assert entries(directory / "missing") == []


def test_one_adds_at_a_time_and_nothing_half_written_stays(directory: Path) -> None:
    (directory / ".add-3").write_bytes(b"of a killed one")
    with adding(directory):
        assert list(directory.iterdir()) == []
        (directory / ".add-0").write_bytes(b"of this one")
        with pytest.raises(WorkerError, match="something else is being added"), adding(directory):
            pass
    assert list(directory.iterdir()) == []


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkerError, match=r"cannot use .*/file/rpc: file exists"), adding(tmp_path / "file/rpc"):
        pass


def test_the_server_gets_its_flag_where_it_can_write(tmp_path: Path) -> None:
    environ = {"LLAMA_CACHE": str(tmp_path / "c")}
    assert with_cache(["-t", "1"], environ) == ["-t", "1", "-c"]
    assert with_cache(["--cache"], environ) == ["--cache"]
    assert stat.S_IMODE((tmp_path / "c/rpc").stat().st_mode) == 0o700


def test_a_server_that_can_write_nowhere_serves_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With `-c` it would end at once."""
    (tmp_path / "c").write_text("a file")
    assert with_cache(["-t", "1"], {"LLAMA_CACHE": str(tmp_path / "c")}) == ["-t", "1"]
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
