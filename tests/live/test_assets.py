"""Goal: the frozen file unpacks once, whatever happens to it, and tells and cleans what it left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs_root, nobody
from tests.faults.scale import count
from tests.live.support import free_port, free_ports, hello, processes_of, serving, wait_for_hello

KILLS = count(25, 100)
"""Starts killed in mid-unpacking."""


def unpacked(assets: Path) -> list[Path]:
    """What lies there besides the lock and what is remembered of the machine."""
    return sorted(path for path in assets.iterdir() if path.name != ".lock" and ".verdict-" not in path.name)


def run(binary: Path, *words: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The finished program and what it printed."""
    return subprocess.run([binary, *words], env=env, capture_output=True, text=True, timeout=60, check=False)


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Every path below, with its inode and the time of its last change."""
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in directory.rglob("*")}


def test_the_second_start_writes_nothing(binary: Path, env: dict[str, str], assets: Path) -> None:
    port = free_port()
    command: list[str | Path] = [binary, "llama-cpp-rpc", "--", "-p", str(port)]
    with serving(command, port, env):
        before = snapshot(assets)
    with serving(command, port, env):
        assert snapshot(assets) == before
    assert len(before) > 15


def test_path_verify_and_prune(binary: Path, env: dict[str, str], assets: Path) -> None:
    port = free_port()
    assert "nothing is unpacked" in run(binary, "assets", "verify", env=env).stderr
    command: list[str | Path] = [binary, "llama-cpp-rpc", "--", "-p", str(port)]
    with serving(command, port, env):
        directory = Path(run(binary, "assets", "path", env=env).stdout.strip())
        assert (directory / "backend-assets/util/llama-cpp-rpc-server").exists()
        checked = run(binary, "assets", "verify", env=env)
        assert (checked.returncode, checked.stderr) == (0, "")
        assert "all as they were built" in checked.stdout
        library = directory / "backend-assets/util/libggml-rpc.so"
        data = bytearray(library.read_bytes())
        data[-1] ^= 1
        library.rename(library.with_name("old"))
        library.write_bytes(data)
        library.chmod(0o700)
        (directory / "backend-assets/util/old").unlink()
        checked = run(binary, "assets", "verify", env=env)
        assert checked.returncode == 4
        assert "libggml-rpc.so has another content" in checked.stderr
        second = free_port()
        with serving([*command[:-1], str(second)], second, env):
            pass
        assert (assets / f"{directory.name}.damaged").exists()
        stale = assets / ("0" * 64)
        stale.mkdir()
        pruned = run(binary, "assets", "prune", env=env).stdout
        assert str(stale) in pruned
        assert f"{directory.name}.damaged" not in pruned, "the directory of a running server went"
    assert f"{directory.name}.damaged" in run(binary, "assets", "prune", env=env).stdout
    assert unpacked(assets) == [directory]


def test_fifty_starts_at_once(binary: Path, env: dict[str, str], assets: Path) -> None:
    """Every one of them serves."""
    ports = free_ports(50)
    started = [
        subprocess.Popen([binary, "llama-cpp-rpc", "--", "-p", str(port)], env=env, stdout=subprocess.DEVNULL)
        for port in ports
    ]
    try:
        for process, port in zip(started, ports, strict=True):
            assert wait_for_hello(port, process) == (7, 0, 0)
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(30)
    assert len(unpacked(assets)) == 1


def test_killed_in_mid_unpacking(binary: Path, env: dict[str, str], assets: Path) -> None:
    interrupted = 0
    for _ in range(KILLS):
        process = subprocess.Popen(
            [binary, "llama-cpp-rpc", "--", "-p", str(free_port())], env=env, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 30
        while not list(assets.glob("*.tmp-*")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        time.sleep(0.004 * interrupted)
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(0.05)
        finished = [path for path in assets.glob("*") if len(path.name) == 64]
        interrupted += not finished
        for path in finished:
            path.rename(path.with_name(f"{'f' * 64}"))
            subprocess.run(["rm", "-rf", assets / ("f" * 64)], check=True)
    assert processes_of(assets) == [], "a killed start left a server behind"
    assert interrupted > 3, "hardly a kill came before the end of the unpacking"
    port = free_port()
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env):
        assert hello(port) == (7, 0, 0)
    assert len(unpacked(assets)) == 1, "a killed start left something for good"


def test_killed_while_the_interpreter_starts(binary: Path, env: dict[str, str], assets: Path) -> None:
    """The bootloader is what a user kills, and for some tenths of a second its child does not know that it is one."""
    for number in range(KILLS):
        process = subprocess.Popen(
            [binary, "llama-cpp-rpc", "--", "-p", str(free_port())],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.3 * number / KILLS)
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(2)  # one that lives on is a server by then
    assert processes_of(assets) == []


def test_leftovers_of_killed_launchers_are_pruned(binary: Path, env: dict[str, str]) -> None:
    scratch = Path(env["TMPDIR"])
    port = free_port()
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env) as running:
        os.kill(running.process.pid, signal.SIGKILL)
    assert len(list(scratch.glob("_MEI*"))) == 1, "the bootloader cleaned up by itself: nothing to prune"
    time.sleep(0.2)
    with serving([binary, "llama-cpp-rpc", "--", "-p", str(port)], port, env):
        pruned = run(binary, "assets", "prune", env=env).stdout
        assert pruned.count("_MEI") == 1
        assert len(list(scratch.glob("_MEI*"))) == 1, "the directory of a running launcher went"
    assert list(scratch.glob("_MEI*")) == []


@pytest.fixture
def outside_tmp() -> Iterator[Path]:
    """A directory that is still there when /tmp is another one."""
    with tempfile.TemporaryDirectory(prefix="worker-test-", dir="/var/tmp") as directory:
        yield Path(directory)


@needs_root
def test_a_foreign_default_falls_back(binary: Path, env: dict[str, str], tmp_path: Path, outside_tmp: Path) -> None:
    """In a mount namespace whose /tmp/localai belongs to somebody else."""
    del env["BACKEND_ASSETS_PATH"]
    foreign = tmp_path / "foreign"
    (foreign / "localai/backend_data").mkdir(parents=True)
    for path in (foreign / "localai", foreign / "localai/backend_data"):
        os.chown(path, nobody, nobody)
    foreign.chmod(0o1777)
    copy = shutil.copy(binary, outside_tmp / "worker")
    port = free_port()
    script = f'mount --bind "{foreign}" /tmp && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", copy, "llama-cpp-rpc", "--", "-p", str(port)]
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets us make no mount namespace")
    own = {"HOME": str(outside_tmp), "TMPDIR": str(outside_tmp), "XDG_CACHE_HOME": ""}
    with serving(command, port, env | own):
        assert list((outside_tmp / ".cache/localai/backend_data").glob("*/backend-assets"))
    assert list((foreign / "localai/backend_data").iterdir()) == []


def test_version_tells_what_is_inside(binary: Path, small_binary: Path, env: dict[str, str], tree: Path) -> None:
    full = json.loads(run(binary, "version", "--json", env=env).stdout)
    small = json.loads(run(small_binary, "version", "--json", env=env).stdout)
    assert (full["p2p"], small["p2p"]) == (True, False)
    assert full["payload"] == small["payload"]
    assert full["head"]["programs"] == ["llama-bench", "llama-server"]
    assert small["head"] is None
    assert full["rpc_protocol"] == "7.0.0"
    assert full["release"] == f"worker-{full['version']}-rpc7-linux-{full['target']}"
    assert set(full["cpu_variants"]) == {
        path.name.removeprefix("libggml-cpu-").removesuffix(".so")
        for path in (tree / "backend-assets/util").glob("libggml-cpu-*")
    }
    assert "x64" in full["cpu_variants"] or full["target"] != "x86_64"
    assert tuple(map(int, full["glibc"]["rpc-server"].split("."))) <= (2, 28)
    assert full["version"] in run(binary, "version", env=env).stdout


def test_licenses_cover_what_is_carried(binary: Path, small_binary: Path, env: dict[str, str]) -> None:
    text = run(binary, "licenses", env=env).stdout
    for name in ("llama.cpp", "Python", "cryptography", "zeroconf", "rich", "pyinstaller", "argparse-dataclass"):
        assert name.lower() in text.lower(), name
    small = run(small_binary, "licenses", env=env)
    assert small.returncode == 0
    for name in ("cpp-httplib", "jsonhpp", "miniaudio", "stb_image"):
        assert (name in text, name in small.stdout) == (True, False), name
