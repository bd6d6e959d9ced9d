"""Goal: nothing that rpc-server may have written in part is ever read again, and what is whole is kept."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.p2p import server_cache
from app.p2p.server_cache import ServerCache, cache_directory

OLD, WHOLE, PART = "0" * 16, "1" * 16, "2" * 16


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def write(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"weights")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A cache with one file, of an earlier and orderly day."""
    made = tmp_path / "rpc"
    made.mkdir()
    write(made, OLD)
    return made


def test_a_server_that_died_in_mid_write(directory: Path) -> None:
    cache = ServerCache()
    cache.begin(directory)
    write(directory, WHOLE)
    cache.settled()
    write(directory, PART)
    cache.begin(directory)  # the next start
    assert entries(directory) == [OLD, WHOLE]


def test_an_end_with_a_client_on_the_server(directory: Path) -> None:
    cache = ServerCache()
    cache.begin(directory)
    write(directory, WHOLE)
    cache.settled()
    write(directory, PART)
    cache.close()
    assert entries(directory) == [OLD, WHOLE]
    assert len(list(directory.iterdir())) == 2, "the mark stays for ever"


def test_a_worker_that_was_killed(directory: Path) -> None:
    """Only what was there before it is known to be whole: what it had seen whole died with it."""
    script = (
        "import os, sys; from pathlib import Path; from app.p2p.server_cache import ServerCache\n"
        "cache = ServerCache(); cache.begin(Path(sys.argv[1]))\n"
        f"Path(sys.argv[1], {PART!r}).write_bytes(b'part'); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, directory], check=False)
    assert entries(directory) == [OLD, PART]
    cache = ServerCache()
    cache.begin(directory)
    assert entries(directory) == [OLD]
    cache.close()
    assert [path.name for path in directory.iterdir()] == [OLD], "the dead worker's mark stays for ever"


def test_a_mark_that_cannot_be_read_vouches_for_nothing(directory: Path) -> None:
    (directory / f".worker-{'a' * 16}").write_bytes(b"\xff\x00")
    ServerCache().begin(directory)
    assert entries(directory) == []


def test_another_worker_that_lives_is_left_alone(directory: Path) -> None:
    first, second = ServerCache(), ServerCache()
    first.begin(directory)
    write(directory, WHOLE)
    second.begin(directory)
    second.settled()
    assert entries(directory) == [OLD, WHOLE]
    second.close()
    first.settled()
    first.close()
    assert entries(directory) == [OLD, WHOLE]


def test_a_disk_without_room_may_have_cut_it_short(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ServerCache()
    cache.begin(directory)
    write(directory, PART)
    monkeypatch.setattr(server_cache, "LITTLE", 1 << 62)
    cache.settled()
    assert entries(directory) == [OLD]


def test_files_of_others_stay(directory: Path) -> None:
    cache = ServerCache()
    cache.begin(directory)
    for name in ("notes.txt", "ABCDEFABCDEFABCD", "3" * 17):
        write(directory, name)
    cache.close()
    assert entries(directory) == sorted([OLD, "notes.txt", "ABCDEFABCDEFABCD", "3" * 17])


def test_no_link_is_followed(directory: Path, tmp_path: Path) -> None:
    """The cache is all that a sandboxed server can write: it must not lead us elsewhere."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (directory / f".worker-{'b' * 16}").symlink_to(victim)
    os.mkfifo(directory / f".worker-{'c' * 16}")
    cache = ServerCache()
    cache.begin(directory)
    (directory / PART).symlink_to(victim)
    cache.begin(directory)
    assert victim.read_text() == "precious"
    assert not (directory / PART).is_symlink(), "the links keep it from being looked after"


def test_a_cache_that_is_not_there_yet_is_made(tmp_path: Path) -> None:
    cache = ServerCache()
    cache.begin(tmp_path / "a/b/rpc")
    write(tmp_path / "a/b/rpc", PART)
    cache.close()
    assert entries(tmp_path / "a/b/rpc") == []


def test_a_server_without_a_cache() -> None:
    cache = ServerCache()
    cache.begin(None)
    cache.settled()
    cache.close()


def test_one_that_cannot_be_made_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rpc").write_text("a file")
    cache = ServerCache()
    cache.begin(tmp_path / "rpc")
    cache.settled()
    cache.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


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
