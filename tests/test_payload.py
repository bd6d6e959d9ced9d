"""Goal: what is unpacked is what was built, whatever stands in the way; and a start that cannot do that says why."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from app import payload as payloads
from app.directories import UnsafeDirectory
from app.embedded import Payload
from app.errors import ExitCode, WorkerError
from app.payload import ensure
from tests.conftest import MakePayload, needs_root, nobody

LIBRARY = "backend-assets/util/libggml-cpu-x64.so"


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Every path below, with its inode and the time of its last change."""
    return {
        str(path.relative_to(directory)): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in directory.rglob("*")
    }


def unpack(payload: Payload, base: Path) -> Path:
    """Unpack to `base`, as a start of the program does; the directory."""
    assets = ensure(payload, str(base), {})
    os.close(assets.fd)
    return assets.path


def test_first_start_unpacks_everything(make_payload: MakePayload, base: Path) -> None:
    payload = make_payload()
    directory = unpack(payload, base)
    assert directory == base / payload.manifest.digest
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert found == set(payload.manifest.files)
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.rglob("*"))


def test_second_start_writes_nothing(make_payload: MakePayload, base: Path) -> None:
    payload = make_payload()
    unpack(payload, base)
    before = snapshot(base)
    unpack(payload, base)
    assert snapshot(base) == before


def test_two_versions_stand_side_by_side(make_payload: MakePayload, base: Path) -> None:
    old = make_payload()
    new = make_payload({"backend-assets/util/llama-cpp-rpc-server": b"another"})
    directory = unpack(old, base)
    before = snapshot(directory)
    assert unpack(new, base) != directory
    assert snapshot(directory) == before


def _plant(directory: Path) -> None:
    (directory / "backend-assets/util/libggml-cpu-zzz.so").write_bytes(b"planted")


def _flip(directory: Path) -> None:
    data = bytearray((directory / LIBRARY).read_bytes())
    data[7] ^= 1
    (directory / LIBRARY).write_bytes(data)


def _link(directory: Path) -> None:
    copy = directory.parent / "elsewhere.so"
    (directory / LIBRARY).rename(copy)
    (directory / LIBRARY).symlink_to(copy)


def _hard_link(directory: Path) -> None:
    os.link(directory / LIBRARY, directory.parent / "second-name.so")


def _fifo(directory: Path) -> None:
    (directory / LIBRARY).unlink()
    os.mkfifo(directory / LIBRARY, 0o700)


def _directory(directory: Path) -> None:
    (directory / LIBRARY).unlink()
    (directory / LIBRARY).mkdir()


def _remove(directory: Path) -> None:
    (directory / LIBRARY).unlink()


def _open_to_others(directory: Path) -> None:
    (directory / "backend-assets/util").chmod(0o777)


def _mode(directory: Path) -> None:
    (directory / LIBRARY).chmod(0o777)


@pytest.mark.parametrize(
    "damage", [_plant, _flip, _link, _hard_link, _fifo, _directory, _remove, _open_to_others, _mode]
)
def test_damage_is_set_aside_and_never_used(make_payload: MakePayload, base: Path, damage: object) -> None:
    payload = make_payload()
    directory = unpack(payload, base)
    inode = directory.stat().st_ino
    assert callable(damage)
    damage(directory)
    assert unpack(payload, base) == directory
    assert directory.stat().st_ino != inode, "the damaged directory is used again"
    assert (base / f"{payload.manifest.digest}.damaged").stat().st_ino == inode, "it was not kept"


def test_only_one_damaged_directory_is_kept(make_payload: MakePayload, base: Path) -> None:
    payload = make_payload()
    for _ in range(3):
        _flip(unpack(payload, base))
    unpack(payload, base)
    assert sorted(path.name for path in base.iterdir()) == [
        ".lock",
        payload.manifest.digest,
        f"{payload.manifest.digest}.damaged",
    ]


@needs_root
def test_a_file_of_another_user_is_not_used(make_payload: MakePayload, base: Path) -> None:
    payload = make_payload()
    directory = unpack(payload, base)
    inode = directory.stat().st_ino
    os.chown(directory / LIBRARY, nobody, nobody)
    unpack(payload, base)
    assert directory.stat().st_ino != inode


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_symbolic_link_on_the_way_is_refused(make_payload: MakePayload, base: Path, depth: int) -> None:
    target = base.parent / "target"
    (target / "a/b").mkdir(parents=True)
    path = base / "a/b"
    link = [base, base / "a", path][depth]
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to([target, target / "a", target / "a/b"][depth])
    with pytest.raises(UnsafeDirectory, match="symbolic link") as caught:
        ensure(make_payload(), str(path), {})
    assert caught.value.code == ExitCode.ASSETS
    assert "BACKEND_ASSETS_PATH" in caught.value.hint
    assert not list((target / "a/b").iterdir()), "the link's target was written to"


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o1777])
def test_a_directory_open_to_others_is_refused(make_payload: MakePayload, base: Path, mode: int) -> None:
    base.mkdir()
    base.chmod(mode)
    if mode == 0o1777:
        os.chown(base, os.geteuid(), -1)
        if os.geteuid() == 0:
            pytest.skip("a sticky directory of root is safe, and we are root")
    with pytest.raises(UnsafeDirectory, match="can be written by other users"):
        ensure(make_payload(), str(base), {})
    assert not list(base.iterdir())


@needs_root
def test_a_directory_of_another_user_is_refused(make_payload: MakePayload, base: Path) -> None:
    base.mkdir()
    os.chown(base, nobody, nobody)
    with pytest.raises(UnsafeDirectory, match="belongs to another user"):
        ensure(make_payload(), str(base), {})


def test_a_file_where_the_directory_should_be(make_payload: MakePayload, base: Path) -> None:
    base.write_text("mine")
    with pytest.raises(UnsafeDirectory, match="not a directory"):
        ensure(make_payload(), str(base), {})
    assert base.read_text() == "mine"


@needs_root
@pytest.mark.parametrize(
    ("options", "message"),
    [("noexec", "mounted noexec"), ("ro", "read-only"), ("size=64k", "no space left")],
)
def test_a_file_system_that_cannot_hold_it(make_payload: MakePayload, base: Path, options: str, message: str) -> None:
    base.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", base], capture_output=True).returncode != 0:
        pytest.skip("this machine lets us mount nothing")
    try:
        big = {"backend-assets/util/llama-cpp-rpc-server": os.urandom(200_000)}
        with pytest.raises(UnsafeDirectory, match=message) as caught:
            ensure(make_payload(big), str(base), {})
        assert caught.value.hint
        assert [path for path in base.iterdir() if path.name != ".lock"] == [], "something half-written stayed"
    finally:
        subprocess.run(["umount", base], check=True)


@needs_root
def test_the_default_falls_back_and_says_so(
    make_payload: MakePayload, base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base.mkdir()
    os.chown(base, nobody, nobody)
    monkeypatch.setattr(payloads, "DEFAULT_ASSETS_PATH", str(base))
    cache = base.parent / "cache"
    assets = ensure(make_payload(), None, {"XDG_CACHE_HOME": str(cache)})
    os.close(assets.fd)
    assert assets.base == cache / "localai/backend_data"
    assert "belongs to another user" in caplog.text
    assert str(assets.base) in caplog.text


def test_an_archive_that_does_not_fit_its_manifest(make_payload: MakePayload, base: Path) -> None:
    other = make_payload({"backend-assets/util/llama-cpp-rpc-server": b"as long" * 100})
    payload = make_payload({"backend-assets/util/llama-cpp-rpc-server": b"another" * 100})
    with pytest.raises(WorkerError, match="carried files are broken") as caught:
        ensure(Payload(payload.manifest, other.read_segment), str(base), {})
    assert caught.value.code == ExitCode.ASSETS
    assert [path.name for path in base.iterdir()] == [".lock"]


def test_an_archive_that_ends_early(make_payload: MakePayload, base: Path) -> None:
    whole = make_payload()
    for end in (-1, -40, 10, 0):
        cut = Payload(whole.manifest, [whole.read_segment(0)[:end]].__getitem__)
        with pytest.raises(WorkerError, match="carried files are broken"):
            ensure(cut, str(base), {})
    assert [path.name for path in base.iterdir()] == [".lock"]


def _start(payload: Payload, base: Path, gate: object) -> None:
    gate.wait()  # type: ignore[attr-defined]
    os.close(ensure(payload, str(base), {}).fd)


def test_fifty_starts_at_once(make_payload: MakePayload, base: Path) -> None:
    payload = make_payload()
    context = multiprocessing.get_context("fork")
    gate = context.Event()
    starts = [context.Process(target=_start, args=(payload, base, gate)) for _ in range(50)]
    for start in starts:
        start.start()
    gate.set()
    for start in starts:
        start.join(60)
    assert [start.exitcode for start in starts] == [0] * 50
    assert sorted(path.name for path in base.iterdir()) == [".lock", payload.manifest.digest]


def test_killed_in_mid_unpacking(make_payload: MakePayload, base: Path) -> None:
    """20 kills here, each at another moment; `tests/live` does it to the frozen file."""
    files = {f"backend-assets/util/lib{number}.so": os.urandom(3000) for number in range(40)}
    payload = make_payload({"backend-assets/util/llama-cpp-rpc-server": b"x", **files})
    context = multiprocessing.get_context("fork")
    interrupted = 0
    for turn in range(20):
        gate = context.Event()
        gate.set()
        process = context.Process(target=_start, args=(payload, base, gate))
        process.start()
        time.sleep(0.002 * turn)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        interrupted += not (base / payload.manifest.digest).exists()
    assert interrupted, "no kill came before the end: this machine is too fast for the test"
    unpack(payload, base)
    assert sorted(path.name for path in base.iterdir()) == [".lock", payload.manifest.digest]


def test_a_start_that_waits_for_another_gives_up_in_the_end(
    make_payload: MakePayload, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base.mkdir(mode=0o700)
    monkeypatch.setattr(payloads, "LOCK_TIMEOUT", 0.1)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX);"
         "print(flush=True); time.sleep(60)", base / ".lock"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(WorkerError, match="another start has been unpacking"):
            ensure(make_payload(), str(base), {})
    finally:
        holder.kill()
        holder.communicate()
