"""From starting the program to an answered HELLO: the bare server, a second start, a first start."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.processes import given
from bench.report import Row, Target, differences, publish
from tests.live.support import free_port, hello, hidden_environment

ROUNDS = 15
_POLL = 0.001


def run() -> None:
    """Measure and publish."""
    bare_server = str(given("WORKER_TEST_SERVER"))
    rows: list[Row] = []
    for label, variable, megabytes in (
        ("worker", "WORKER_TEST_BINARY", 28),
        ("worker-nop2p", "WORKER_TEST_SMALL_BINARY", 16),
    ):
        binary = str(given(variable))
        with tempfile.TemporaryDirectory(prefix="worker-bench-") as scratch:
            rows += _measure(label, bare_server, binary, Path(scratch))
        size = Path(binary).stat().st_size / 1e6
        rows.append(Row(f"{label}: size", "MB", (size,), target=Target("<=", megabytes)))
    publish("start", rows)


def _measure(label: str, bare_server: str, binary: str, scratch: Path) -> list[Row]:
    assets = scratch / "assets"
    env = hidden_environment(BACKEND_ASSETS_PATH=str(assets))
    bare, second, first, written = [], [], [], []
    _answered([binary, "llama-cpp-rpc", "--"], env)
    for _ in range(ROUNDS):
        bare.append(_answered([bare_server], env))
        before = _state(assets)
        second.append(_answered([binary, "llama-cpp-rpc", "--"], env))
        written.append(float(sum(size for path, size in _state(assets) - before)))
    for _ in range(ROUNDS):
        shutil.rmtree(assets)
        first.append(_answered([binary, "llama-cpp-rpc", "--"], env))
    return [
        Row("bare server", "ms", tuple(bare)),
        Row(f"{label}: second start", "ms", tuple(second)),
        Row(f"{label}: second start above bare", "ms", differences(second, bare), target=Target("<=", 250)),
        Row(f"{label}: payload written by it", "bytes", tuple(written)),
        Row(f"{label}: first start", "ms", tuple(first)),
        Row(f"{label}: first start above bare", "ms", differences(first, bare), target=Target("<=", 600)),
    ]


def _answered(command: list[str], env: dict[str, str]) -> float:
    """Milliseconds from the start of `command` to the answer of its server."""
    port = free_port()
    started = time.perf_counter()
    process = subprocess.Popen(
        [*command, "-p", str(port)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while hello(port) is None:
        time.sleep(_POLL)
    took = time.perf_counter() - started
    process.terminate()
    process.wait()
    return took * 1000


def _state(assets: Path) -> set[tuple[tuple[str, int, int], int]]:
    """Every file, told apart by its inode and last change, with its size in bytes."""
    return {
        ((str(path), path.lstat().st_ino, path.lstat().st_mtime_ns), path.lstat().st_size)
        for path in assets.rglob("*")
        if path.is_file()
    }
