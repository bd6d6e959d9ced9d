"""Goal: what is added is whole and what rpc-server would have written itself, or nothing at all."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from app.cache import tool
from app.cache.tool import Added
from app.errors import WorkerError
from app.payload import CACHE_TOOL, Assets
from tests.p2p.processes import wait_until

PLENTY = 1 << 40
TWELVE = 12 << 20


def add(assets: Assets, directory: Path, *models: Path, limits: tuple[int, int] = (PLENTY, PLENTY)) -> Added:
    return tool.add(assets, directory, models, *limits, os.environ, lambda _done, _of: None)


def states(assets: Assets, directory: Path) -> dict[str, bool]:
    """Name -> whole."""
    names = [path.name for path in directory.iterdir() if not path.name.startswith(".")]
    return {checked.name: checked.whole for checked in tool.verify(assets, directory, names, os.environ)}


def fnv(data: bytes) -> str:
    """FNV-1a with 64 bits, as its authors describe it."""
    state = 0xCBF29CE484222325
    for byte in data:
        state = (state ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{state:016x}"


def test_large_tensors_become_files_that_their_hash_names(assets: Assets, large_model: Path, directory: Path) -> None:
    added = add(assets, directory, large_model)
    assert {tensor.name for tensor in added.tensors} == {f"blk.0.ffn_{part}.weight" for part in ("gate", "up", "down")}
    assert (added.bytes, all(tensor.added for tensor in added.tensors)) == (3 * TWELVE, True)
    contents = {reader.name: reader.data for reader in gguf.GGUFReader(large_model).tensors}
    assert added.small == sum(data.nbytes for data in contents.values()) - added.bytes
    for tensor in added.tensors:
        assert (directory / tensor.hash).read_bytes() == contents[tensor.name].tobytes()
    assert fnv(contents["blk.0.ffn_up.weight"].tobytes()) in {tensor.hash for tensor in added.tensors}
    assert states(assets, directory) == dict.fromkeys((tensor.hash for tensor in added.tensors), True)


def test_what_is_there_is_not_written_again_and_counts_as_used(
    assets: Assets, large_model: Path, directory: Path
) -> None:
    first, second, third = sorted(tensor.hash for tensor in add(assets, directory, large_model).tensors)
    os.truncate(directory / first, 5)  # by a server that was killed
    (directory / third).unlink()
    os.utime(directory / second, (1, 1))
    before = (directory / second).stat().st_ino
    again = add(assets, directory, large_model, limits=(PLENTY, 2 * TWELVE))
    assert {tensor.hash for tensor in again.tensors if tensor.added} == {first, third}
    assert (directory / second).stat().st_ino == before
    assert (directory / second).stat().st_mtime > time.time() - 600
    assert set(states(assets, directory).values()) == {True}


@pytest.mark.parametrize(
    ("limits", "error"),
    [((PLENTY, 3 * TWELVE - 1), "no room for 36 MiB in the cache: 36 MiB can"), ((TWELVE, PLENTY), "may hold 12 MiB")],
)
def test_nothing_is_written_without_room_for_all(
    assets: Assets, large_model: Path, directory: Path, limits: tuple[int, int], error: str
) -> None:
    with pytest.raises(WorkerError, match=error):
        add(assets, directory, large_model, limits=limits)
    assert list(directory.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for two of three tensors."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", place], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs root to mount a small file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_fills_up_meanwhile(assets: Assets, large_model: Path, small_disk: Path) -> None:
    with pytest.raises(WorkerError, match="no space left"):
        add(assets, small_disk, large_model)
    found = states(assets, small_disk)
    assert len(found) <= 2
    assert set(found.values()) <= {True}
    assert len(list(small_disk.iterdir())) == len(found), "something half-written stays"


def test_killed_while_it_writes(tree: Path, assets: Assets, large_model: Path, directory: Path) -> None:
    interrupted = 0
    for wait in range(30):
        shutil.rmtree(directory)
        directory.mkdir()
        process = subprocess.Popen(
            [tree / CACHE_TOOL, "add", directory, str(PLENTY), str(PLENTY), large_model], stdout=subprocess.DEVNULL
        )
        while process.poll() is None and not list(directory.iterdir()):
            time.sleep(0.0005)
        time.sleep(0.001 * wait)
        process.kill()
        process.wait()
        interrupted += bool(list(directory.glob(".add-*")))
        assert set(states(assets, directory).values()) <= {True}, "a file that is not whole has a name"
    assert interrupted, "no kill came in mid-write: this test could not fail"


def test_a_model_that_is_cut_short(assets: Assets, large_model: Path, directory: Path, tmp_path: Path) -> None:
    for size in (large_model.stat().st_size - 1, 2000, 3, 0):
        cut = shutil.copy(large_model, tmp_path / "cut.gguf")
        os.truncate(cut, size)
        with pytest.raises(WorkerError, match=r"cut.gguf is (cut short|no GGUF model)") as raised:
            add(assets, directory, Path(cut))
        assert raised.value.hint
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("kind", ["directory", "fifo", "missing"])
def test_what_is_no_file(assets: Assets, directory: Path, tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model.gguf"
    if kind == "directory":
        model.mkdir()
    elif kind == "fifo":
        os.mkfifo(model)  # nobody writes to it
    with pytest.raises(WorkerError, match=r"model\.gguf(: no such file| is no file)"):
        add(assets, directory, model)


def test_a_hostile_model_is_one_error(assets: Assets, large_model: Path, directory: Path, tmp_path: Path) -> None:
    """ggml's reader may refuse it, or abort; neither is ours to mend, and neither shows a trace."""
    header = struct.Struct("<4sIqq")
    models = [header.pack(b"GGUF", 3, tensors, keys) for tensors in (-1, 1 << 62) for keys in (0, 1 << 62)]
    start = large_model.read_bytes()[:8000]
    random = np.random.default_rng(1)
    for _ in range(60):
        harmed = bytearray(start)
        for at in random.integers(8, len(start), 20):
            harmed[at] = int(random.integers(256))
        models.append(bytes(harmed))
    for content in models:
        (tmp_path / "hostile.gguf").write_bytes(content)
        with pytest.raises(WorkerError, match=r"hostile\.gguf") as raised:
            add(assets, directory, tmp_path / "hostile.gguf")
        assert "\n" not in str(raised.value)
    assert list(directory.iterdir()) == []


def test_a_tool_that_dies_is_one_error(directory: Path, tmp_path: Path) -> None:
    program = tmp_path / CACHE_TOOL
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho \'{"reading": "model.gguf"}\'\necho \'{"tens\'\nkill -ABRT $$\n')
    program.chmod(0o700)
    assets = Assets(tmp_path, tmp_path, -1)
    with pytest.raises(WorkerError, match=r"worker-cache was killed by SIGABRT while it read model\.gguf"):
        add(assets, directory, Path("model.gguf"))


def test_a_check_has_its_time(directory: Path, tmp_path: Path) -> None:
    program = tmp_path / CACHE_TOOL
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nexec sleep 99\n")
    program.chmod(0o700)
    with pytest.raises(WorkerError, match=r"took longer than 0\.2 s"):
        list(tool.verify(Assets(tmp_path, tmp_path, -1), directory, ["a"], os.environ, 0.2))


def test_what_is_not_whole_is_found(assets: Assets, large_model: Path, directory: Path, tmp_path: Path) -> None:
    cut, poisoned, whole = sorted(tensor.hash for tensor in add(assets, directory, large_model).tensors)
    os.truncate(directory / cut, TWELVE - 1)
    with (directory / poisoned).open("r+b") as file:
        file.seek(TWELVE // 2)
        file.write(b"\0poison\0")
    (directory / ("0" * 16)).symlink_to(directory / whole)
    os.mkfifo(directory / ("1" * 16))  # nobody waits for it
    assert states(assets, directory) == {cut: False, poisoned: False, whole: True, "0" * 16: False, "1" * 16: False}
    assert list(tool.verify(assets, directory, ["2" * 16], os.environ)) == [], "what is gone is no fault"


def test_looking_at_a_file_is_no_use_of_it(assets: Assets, large_model: Path, directory: Path) -> None:
    added = add(assets, directory, large_model)
    for tensor in added.tensors:
        os.utime(directory / tensor.hash, (1, 1))
    assert set(states(assets, directory).values()) == {True}
    assert {path.stat().st_atime for path in directory.iterdir()} == {1.0}


def test_no_more_is_read_than_was_there_at_first(assets: Assets, directory: Path) -> None:
    """Nor anything of what is larger than any tensor: a server that was taken over could keep us busy for ever."""
    grows, huge = directory / ("0" * 16), directory / ("1" * 16)
    grows.touch()
    os.truncate(grows, 1 << 28)
    huge.touch()
    os.truncate(huge, tool.LARGEST + 1)
    ended = threading.Event()

    def grow() -> None:
        while not ended.wait(0.001) and grows.stat().st_size < 1 << 42:
            os.truncate(grows, grows.stat().st_size + (1 << 26))

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        checked = list(tool.verify(assets, directory, [grows.name], os.environ, 30.0))
        checked += tool.verify(assets, directory, [huge.name], os.environ, 30.0)
    finally:
        ended.set()
        growing.join()
    assert [(one.name, one.whole) for one in checked] == [(grows.name, False), (huge.name, False)]
    assert checked[1].bytes == 0


def test_a_hostile_model_gets_no_more_memory_or_rights(tree: Path, directory: Path) -> None:
    with subprocess.Popen(
        [tree / CACHE_TOOL, "verify", directory, "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None

        def limited() -> bool:
            return str(4 << 30) in Path(f"/proc/{process.pid}/limits").read_text()

        try:
            assert wait_until(limited)
            assert "NoNewPrivs:\t1" in Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.stdin.close()


def test_what_it_complains_of_cannot_steer_a_terminal(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / CACHE_TOOL
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\nprintf 'key \\033[2J \\302\\233 gone\\n' >&2\necho '{\"end\": true}'\n")
    program.chmod(0o700)
    caplog.set_level(logging.DEBUG)
    assert list(tool.verify(Assets(tmp_path, tmp_path, -1), directory, ["a"], os.environ)) == []
    assert [record.message for record in caplog.records] == ["worker-cache: key \ufffd[2J \ufffd gone"]


def test_it_dies_with_who_started_it(tree: Path, directory: Path) -> None:
    os.mkfifo(directory / "names")
    script = f'exec 3<>"{directory}/names"; "{tree / CACHE_TOOL}" verify "{directory}" 1 <&3 & echo $!; wait'
    shell = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
    assert shell.stdout is not None
    pid = int(shell.stdout.readline())
    time.sleep(0.2)  # it must have asked for that first
    shell.send_signal(signal.SIGKILL)
    shell.communicate()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "it outlives its parent"
        time.sleep(0.02)
