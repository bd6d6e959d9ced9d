"""Goal: the cache is where rpc-server looks for it, and what is removed is what was not used for longest."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest

from app.cache import directory as cache
from app.cache.directory import (
    adding,
    cache_directory,
    check_safe,
    entries,
    make_room,
    own_directory,
    shrink,
    sweep,
    with_cache,
)
from app.errors import WorkerError
from tests.conftest import needs_root, nobody


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


def test_what_nobody_writes_there_is_swept_away(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A tensor has more than 10 MiB; a mark and what is being added may have any size."""
    caplog.set_level(logging.INFO)
    victim = tmp_path / "victim/file"
    victim.parent.mkdir()
    victim.write_text("precious")
    for digit, size in (("a", (10 << 20) + 1), ("b", 10 << 20), ("c", 0)):
        write(directory, digit, 0, 100.0)
        os.truncate(directory / (digit * 16), size)
    (directory / f".worker-{'d' * 16}").write_text("")
    (directory / "big").write_text("not counted")
    (directory / ("e" * 16)).symlink_to(victim)
    (directory / ".add-1").symlink_to(victim.parent)
    (directory / "f/deep").mkdir(parents=True)
    (directory / "f/deep/link").symlink_to(victim.parent)
    os.mkfifo(directory / f".worker-{'e' * 16}")
    sweep(directory)
    assert sorted(path.name for path in directory.iterdir()) == [f".worker-{'d' * 16}", "a" * 16]
    assert victim.read_text() == "precious"
    assert [record.message for record in caplog.records] == [
        f"7 file(s) of {directory} were removed: they are none of the cache's"
    ]


def test_names_are_looked_at_up_to_a_limit(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAX_NAMES", 3)
    for digit in "abcdef":
        write(directory, digit, 10, 100.0)
    (directory / "deep/deeper").mkdir(parents=True)
    assert len(entries(directory)) <= 3
    assert len(list(directory.iterdir())) == 3


@needs_root
@pytest.mark.parametrize(
    ("place", "mode", "owner", "error"),
    [
        (".", 0o700, 0, None),
        (".", 0o755, nobody, None),  # root looks after the cache of a user
        (".", 0o775, 0, "rpc can be written by other users"),
        (".", 0o777, nobody, "rpc can be written by other users"),
        (".", 0o1777, 0, "rpc can be written by other users"),  # sticky, but there names are believed
        ("..", 0o777, 0, "cache can be written by other users"),
        ("..", 0o700, nobody, None),  # root with the HOME of a user
    ],
)
def test_nobody_else_may_plant_weights(directory: Path, place: str, mode: int, owner: int, error: str | None) -> None:
    os.chown(directory / place, owner, -1)
    (directory / place).chmod(mode)
    if error is None:
        check_safe(directory)
        return
    with pytest.raises(WorkerError, match=error) as raised:
        check_safe(directory)
    assert "LLAMA_CACHE" in raised.value.hint


@needs_root
def test_root_trusts_no_two_users(directory: Path) -> None:
    os.chown(directory, nobody, -1)
    os.chown(directory.parent, nobody - 1, -1)
    with pytest.raises(WorkerError, match="belongs to another user"):
        check_safe(directory)


def test_a_link_to_a_place_that_others_can_write_to(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (directory / "link").symlink_to(tmp_path / "open")
    with pytest.raises(WorkerError, match="open can be written"):
        check_safe(directory / "link/rpc")


@pytest.mark.parametrize("arguments", [["-t", "1"], ["-t", "1", "-c"]])
def test_the_server_has_no_cache_where_others_could_plant_weights(
    directory: Path, caplog: pytest.LogCaptureFixture, arguments: list[str]
) -> None:
    directory.chmod(0o777)
    assert with_cache(arguments, {"LLAMA_CACHE": str(directory.parent)}) == ["-t", "1"]
    assert ["can be written by other users" in record.message for record in caplog.records] == [True]


def test_one_adds_at_a_time_and_nothing_half_written_stays(directory: Path) -> None:
    (directory / ".add-3").write_bytes(b"of a killed one")
    with adding(directory):
        assert list(directory.iterdir()) == []
        (directory / ".add-0").write_bytes(b"of this one")
        with pytest.raises(WorkerError, match=r"being added to .*, or the server holds it"), adding(directory):
            pass
    assert list(directory.iterdir()) == []


def test_a_directory_in_the_way_of_what_is_added(directory: Path) -> None:
    (directory / ".add-1/deep").mkdir(parents=True)
    with adding(directory):
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
