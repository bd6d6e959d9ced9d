"""Goal: the native part that is cross-compiled for aarch64 starts there and answers HELLO (under qemu-user)."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from builder.elf import newest_glibc
from builder.native import EMULATOR, EMULATOR_ROOT
from tests.live.support import free_port, wait_for_hello


@pytest.fixture(scope="module")
def tree() -> Path:
    """The staged aarch64 tree."""
    given = os.environ.get("WORKER_TEST_AARCH64_TREE")
    if not given:
        pytest.skip(f"{EMULATOR} or the C library in {EMULATOR_ROOT} is missing (qemu-user-static, libc6-arm64-cross)")
    return Path(given)


def test_it_answers_hello(tree: Path, env: dict[str, str]) -> None:
    port = free_port()
    util = tree / "backend-assets/util"
    command: list[str | Path] = [EMULATOR, "-L", EMULATOR_ROOT, util / "llama-cpp-rpc-server", "-p", str(port)]
    server = subprocess.Popen(command, cwd=util, env=env, stdout=subprocess.DEVNULL)
    try:
        assert wait_for_hello(port, server) == (7, 0, 0)
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


def test_it_holds_the_variants_and_needs_no_newer_glibc(tree: Path) -> None:
    names = {path.name for path in (tree / "backend-assets/util").iterdir()}
    assert {"libggml-cpu-armv8.0_1.so", "libggml-cpu-armv8.2_1.so", "libggml-rpc.so"} <= names
    assert newest_glibc(sorted((tree / "backend-assets/util").iterdir())) <= (2, 28)
