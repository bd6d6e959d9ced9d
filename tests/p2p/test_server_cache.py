"""Goal: nothing that rpc-server may have written in part is ever read again, and what is whole is kept."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Collection
from pathlib import Path

import pytest

from app.cache import directory as directory_module
from app.cache.directory import MAX_NAMES, adding
from app.p2p import cache_mark, server_cache
from app.p2p.server_cache import ServerCache
from tests.p2p.processes import wait_until

OLD, WHOLE, PART = "0" * 16, "1" * 16, "2" * 16


def entries(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))


def write(directory: Path, name: str) -> None:
    (directory / name).write_bytes(b"weights")


def dead_mark(directory: Path, letter: str, content: str) -> Path:
    """What a killed worker leaves."""
    mark = directory / f".worker-{letter.rjust(16, '0')}"
    mark.write_text(content)
    return mark


def marks(directory: Path) -> list[Path]:
    return sorted(directory.glob(".worker-*"))


@pytest.fixture(autouse=True)
def _small_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that they are hashed in no time; that a tensor has its size: tests/cache/test_directory.py."""
    monkeypatch.setattr(directory_module, "_THRESHOLD", 0)


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
        "from app.cache import directory; directory._THRESHOLD = 0\n"
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


def fnv(content: bytes) -> str:
    state = 0xCBF29CE484222325
    for byte in content:
        state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def whole(directory: Path, names: Collection[str]) -> set[str]:
    """What `worker-cache` does."""
    return {name for name in names if fnv((directory / name).read_bytes()) == name}


def put(directory: Path, content: bytes, cut: int = 0, written: float = 0.0) -> str:
    """Write it as rpc-server does, without the last `cut` bytes."""
    path = directory / fnv(content)
    path.write_bytes(content[: len(content) - cut])
    if written:
        os.utime(path, (written, written))
    return path.name


def test_what_is_whole_outlives_a_server_that_died(directory: Path) -> None:
    cache = ServerCache(whole=whole)
    cache.begin(directory)
    kept = [put(directory, content) for content in (b"large", b"model")]
    put(directory, b"part", cut=1)
    cache.begin(directory)
    assert entries(directory) == sorted([OLD, *kept])
    cache.close()
    assert entries(directory) == sorted([OLD, *kept]), "what was hashed is in doubt again"


def test_what_is_whole_outlives_a_worker_that_was_killed(directory: Path) -> None:
    """So does what `worker cache add` put there meanwhile; what was there at the start is not hashed."""
    dead_mark(directory, "a", OLD)
    kept, cut = put(directory, b"model"), put(directory, b"part", cut=1)
    asked: list[str] = []

    def look(place: Path, names: Collection[str]) -> set[str]:
        asked.extend(names)
        return whole(place, names)

    cache = ServerCache(whole=look)
    cache.begin(directory)
    assert entries(directory) == sorted([OLD, kept])
    assert sorted(asked) == sorted([kept, cut])
    cache.close()
    assert marks(directory) == []


def test_an_orderly_end_with_a_client_on_the_server(directory: Path) -> None:
    """Only the last file can be cut; the others are checked at the next start, which a stop need not wait for."""
    cache = ServerCache(whole=whole)
    cache.begin(directory)
    kept = [put(directory, content, written=1000.0 + number) for number, content in enumerate((b"a", b"b"))]
    put(directory, b"last", cut=1)
    cache.close()
    assert entries(directory) == sorted([OLD, *kept])
    assert len(marks(directory)) == 1, "nobody will check them"
    again = ServerCache(whole=whole)
    again.begin(directory)
    again.close()
    assert (entries(directory), marks(directory)) == (sorted([OLD, *kept]), [])


def test_an_end_with_a_full_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ServerCache(whole=whole)
    cache.begin(directory)
    put(directory, b"first", cut=1, written=1000.0)
    put(directory, b"last")
    monkeypatch.setattr(server_cache, "LITTLE", 1 << 62)
    cache.close()
    assert entries(directory) == [OLD]


def test_a_stop_does_not_wait_for_a_check(directory: Path) -> None:
    dead_mark(directory, "a", OLD)
    put(directory, b"model")
    begun, go_on = threading.Event(), threading.Event()

    def slow(place: Path, names: Collection[str]) -> set[str]:
        begun.set()
        go_on.wait(60)
        return whole(place, names)

    cache = ServerCache(whole=slow)
    starting = threading.Thread(target=cache.begin, args=(directory,))
    starting.start()
    assert begun.wait(60)
    cache.close()
    assert starting.is_alive()
    go_on.set()
    starting.join()


def test_an_idle_server_has_no_more_than_its_size(directory: Path) -> None:
    (directory / OLD).unlink()
    cache = ServerCache(max_size=20)
    cache.begin(directory)
    names = [put(directory, bytes([number]) * 8, written=1000.0 + number) for number in range(4)]
    cache.settled()
    assert entries(directory) == sorted(names[2:])
    cache.close()
    smaller = ServerCache(max_size=8)
    smaller.begin(directory)
    assert entries(directory) == names[3:]
    smaller.close()


def test_a_file_that_was_removed_and_is_written_anew_is_in_doubt(directory: Path) -> None:
    """Both to this worker and, by its mark, to one that follows when this one is killed."""
    cache = ServerCache(max_size=10, whole=whole)
    cache.begin(directory)
    put(directory, b"makes room", written=1e10)
    cache.settled()
    assert OLD not in entries(directory)
    write(directory, OLD)  # which is not its hash
    (mark,) = marks(directory)
    assert OLD not in mark.read_text()
    cache.begin(directory)
    assert OLD not in entries(directory)
    cache.close()


def test_a_full_disk_is_noticed_while_the_server_writes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else makes room before the server is idle again."""
    looked = threading.Event()

    def room(_directory: Path) -> int:
        looked.set()
        return 0

    monkeypatch.setattr(server_cache, "LOOK_INTERVAL", 0.01)
    cache = ServerCache(whole=whole)
    with monkeypatch.context() as patch:
        patch.setattr(server_cache, "room", room)
        cache.begin(directory)
        kept = put(directory, b"model")
        put(directory, b"part", cut=1)
        looked.clear()
        assert looked.wait(60)
        looked.clear()
        assert looked.wait(60)  # the look before it has been noted
    cache.settled()
    assert entries(directory) == sorted([OLD, kept])
    cache.close()


def test_others_get_their_room_while_the_server_writes(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_cache, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(directory_module, "spare_room", lambda place: -1 if entries(place) else 1)
    cache = ServerCache(whole=whole)
    cache.begin(directory)
    assert wait_until(lambda: entries(directory) == [])
    cache.close()


@pytest.mark.parametrize("when", ["first start", "next start", "settled"])
def test_what_the_server_would_not_write_is_removed(directory: Path, when: str) -> None:
    """It would fill the disk and count nowhere."""
    cache = ServerCache()
    if when != "first start":
        cache.begin(directory)
    for name in ("big", "ABCDEFABCDEFABCD", "3" * 17, ".hidden", ".add-1"):
        write(directory, name)
    (directory / "4444" / "deep").mkdir(parents=True)
    if when == "settled":
        cache.settled()
    else:
        cache.begin(directory)
    assert sorted(path.name for path in directory.iterdir()) == [cache._mark_name, OLD]
    cache.close()


def test_what_is_being_added_stays(directory: Path) -> None:
    cache = ServerCache()
    with adding(directory):
        write(directory, ".add-1")
        cache.begin(directory)
        assert (directory / ".add-1").exists()
    cache.close()


def test_a_locked_mark_is_not_larger_than_a_mark(directory: Path) -> None:
    """The server can hold a lock as a worker does."""
    mark = dead_mark(directory, "a", "")
    os.truncate(mark, 1 << 30)
    cache = ServerCache()
    with mark.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        cache.begin(directory)
    assert not mark.exists()
    cache.close()


def test_a_flood_of_names_is_removed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server runs as well: every look would take as long."""
    monkeypatch.setattr(directory_module, "MAX_NAMES", 100)
    monkeypatch.setattr(server_cache, "LOOK_INTERVAL", 0.01)
    cache = ServerCache()
    cache.begin(directory)
    for number in range(1000):
        write(directory, f"{number:016x}")
    assert wait_until(lambda: len(list(directory.iterdir())) <= 100)
    cache.close()


def test_names_do_not_eat_memory(directory: Path) -> None:
    for number in range(1, MAX_NAMES // 2 * 3):
        os.mknod(directory / f"{number:016x}")
    tracemalloc.start()
    try:
        directory_module.entries(directory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(list(directory.iterdir())) == MAX_NAMES
    assert peak < 32 << 20
    cache = ServerCache()
    cache.begin(directory)
    assert len(entries(directory)) <= 1, "of 0 bytes"
    cache.close()


def test_a_disk_that_others_fill_is_told_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[Path] = []

    def full(place: Path) -> int:
        looks.append(place)
        return -1

    monkeypatch.setattr(server_cache, "LOOK_INTERVAL", 0.01)
    monkeypatch.setattr(directory_module, "spare_room", full)
    monkeypatch.setattr(server_cache, "spare_room", full)
    cache = ServerCache()
    cache.begin(directory)
    assert wait_until(lambda: len(looks) > 10)
    cache.close()
    told = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert [message for message in told if str(directory) in message] == [
        f"the disk of {directory} is nearly full although the cache is empty"
    ]


def test_a_cache_that_others_can_write_to_is_left_alone(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(directory, "notes.txt")
    directory.chmod(0o777)
    cache = ServerCache(max_size=0)
    cache.begin(directory)
    cache.settled()
    cache.close()
    assert entries(directory) == [OLD, "notes.txt"]
    assert ["can be written by other users" in record.message for record in caplog.records] == [True]


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


def test_links_and_fifos_are_no_tensors(directory: Path, tmp_path: Path) -> None:
    """A server outside the sandbox would write through the link, and wait for ever at the FIFO."""
    victim, elsewhere = tmp_path / "victim", tmp_path / "elsewhere"
    victim.write_text("precious")
    elsewhere.mkdir()
    write(elsewhere, WHOLE)
    (directory / PART).symlink_to(victim)
    (directory / ("4" * 16)).symlink_to(elsewhere)
    os.mkfifo(directory / ("5" * 16))
    cache = ServerCache()
    cache.begin(directory)
    assert entries(directory) == [OLD]
    (directory / OLD).unlink()
    (directory / OLD).symlink_to(victim)  # under a name that is trusted
    cache.begin(directory)
    assert entries(directory) == []
    assert (victim.read_text(), entries(elsewhere)) == ("precious", [WHOLE])


def test_a_planted_directory_ends_nothing(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("6" * 16, f".worker-{'d' * 16}"):
        (directory / name / "deep").mkdir(parents=True)
    dead_mark(directory, "e", OLD)
    write(directory, PART)
    cache = ServerCache()
    cache.begin(directory)
    assert entries(directory) == [OLD]
    assert cache._mark is not None, "a kill of this worker would go unseen"
    write(directory, PART)
    cache.begin(directory)
    write(directory, PART)
    cache.close()
    assert entries(directory) == [OLD]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_one_that_stays_does_not_keep_the_others(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is it forgotten: the dead worker's mark stays as long as it does."""
    stuck, mark = [f"{number:016x}" for number in range(16, 24)], dead_mark(directory, "f", OLD)
    for number in range(16, 48):
        write(directory, f"{number:016x}")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.name in stuck:
            raise OSError(errno.EPERM, "Operation not permitted")
        unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        cache = ServerCache()
        cache.begin(directory)
        assert entries(directory) == [OLD, *stuck]
        assert [record.levelno for record in caplog.records].count(logging.WARNING) == 1
        assert mark.exists()
    cache.settled()
    assert entries(directory) == [OLD]
    assert not mark.exists()


def test_a_mark_that_may_not_be_opened_does_not_keep_the_others(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for letter in "abc":
        dead_mark(directory, letter, OLD)
    write(directory, PART)
    really_open = os.open

    def refuse(path: Path, *rest: int) -> int:
        if path.name.endswith(("a", "b")) and path.name.startswith(".worker-00"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    cache = ServerCache()
    cache.begin(directory)
    assert entries(directory) == [OLD]
    assert cache._mark is not None


def test_only_what_all_marks_name_is_kept(directory: Path) -> None:
    for letter, name in (("a", WHOLE), ("b", PART)):
        write(directory, name)
        dead_mark(directory, letter, f"{OLD}\n{name}\n")
    ServerCache().begin(directory)
    assert entries(directory) == [OLD]


def test_a_large_mark_vouches_for_nothing(directory: Path) -> None:
    dead_mark(directory, "a", f"{OLD}\n".ljust(cache_mark._MAX_MARK))
    cache = ServerCache()
    cache.begin(directory)
    assert entries(directory) == [OLD]
    dead_mark(directory, "a", f"{OLD}\n".ljust(cache_mark._MAX_MARK + 1))
    cache.settled()
    assert entries(directory) == []


@pytest.mark.parametrize("content", ["a b " * (2 << 20), "a b " * (1 << 18), f"{OLD}\n" * 60_000])
def test_marks_do_not_eat_memory(directory: Path, content: str) -> None:
    for letter in "abc":
        dead_mark(directory, letter, content)
    cache = ServerCache()
    tracemalloc.start()
    try:
        cache.begin(directory)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert len(marks(directory)) == 1, "only our own is left"


@pytest.mark.parametrize(("more", "kept"), [(0, [OLD]), (1, [])])
def test_more_marks_than_are_read_vouch_for_nothing(directory: Path, more: int, kept: list[str]) -> None:
    for number in range(cache_mark._MAX_MARKS + more):
        dead_mark(directory, f"{number:x}", OLD)
    write(directory, PART)
    ServerCache().begin(directory)
    assert entries(directory) == kept
    assert len(marks(directory)) == 1, "only our own is left"


def test_a_mark_that_somebody_locks_first(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """We wait for nobody, and look after the cache without a mark until there is one."""
    flock, held = fcntl.flock, []

    def too_late(file: int, operation: int) -> None:
        assert operation & fcntl.LOCK_NB, "this would wait for ever"
        held.append(os.open(f"/proc/self/fd/{file}", os.O_RDWR))
        flock(held[-1], fcntl.LOCK_EX)
        flock(file, operation)

    cache = ServerCache()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", too_late)
        cache.begin(directory)
    for file in held:
        os.close(file)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert marks(directory) == []
    write(directory, WHOLE)
    cache.settled()
    write(directory, PART)
    cache.begin(directory)
    assert entries(directory) == [OLD, WHOLE]
    assert len(marks(directory)) == 1


def test_only_we_may_look_into_what_we_make(tmp_path: Path) -> None:
    existing = tmp_path / "home"
    existing.mkdir()
    existing.chmod(0o755)
    before = os.umask(0o022)
    try:
        ServerCache().begin(existing / "a/b/rpc")
    finally:
        os.umask(before)
    modes = {place: stat.S_IMODE((existing / place).stat().st_mode) for place in ("", "a", "a/b", "a/b/rpc")}
    assert modes == {"": 0o755, "a": 0o700, "a/b": 0o700, "a/b/rpc": 0o700}


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
