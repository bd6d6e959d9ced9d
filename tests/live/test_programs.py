"""Goal: the frozen file's llama-server and llama-bench compute as llama.cpp's own do, here and through rpc-server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from app import carchive
from app.errors import WorkerError
from app.p2p import programs
from app.p2p.programs import Program
from tests.live.support import START_LIMIT, free_port, greedy, serving


@pytest.fixture(autouse=True)
def from_the_frozen_file(binary: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is carried is read from it; the working directory is this test's own."""
    monkeypatch.setattr(carchive, "EXECUTABLE", str(binary))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def server(env: dict[str, str], assets: Path) -> Program:
    return programs.prepare("llama-server", env, str(assets))


def tokens(program: Path, env: dict[str, str], model: Path, rpc: str) -> str:
    """What `program` answers greedily."""
    command = [sys.executable, *greedy(program.parent, model, rpc)[1:]]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


def test_it_answers_as_the_bare_one(
    server: Program, clients: Path, tree: Path, tiny_model: Path, env: dict[str, str]
) -> None:
    port = free_port()
    bare: list[str | Path] = [tree / "backend-assets/util/llama-cpp-rpc-server", "-p", str(port)]
    with serving(bare, port, env):
        for rpc in ("", f"127.0.0.1:{port}"):
            expected = tokens(clients / "llama-server", env, tiny_model, rpc)
            assert expected.count(",") == 47
            assert tokens(server.path, server.env, tiny_model, rpc) == expected


def test_it_runs_where_the_user_is_with_no_library_of_others(
    server: Program, tiny_model: Path, assets: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_model, tmp_path / "model.gguf")
    port = free_port()
    command: list[str | Path] = [server.path, "-m", "model.gguf", "-c", "256", "--port", str(port)]
    with subprocess.Popen(command, env=server.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            assert healthy(port, process)
            maps = Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.terminate()
    mapped = {Path(path) for path in re.findall(r"/\S+\.so\S*", maps)}
    ours = {path for path in mapped if path.is_relative_to(assets)}
    assert {"libggml.so.0", "libggml-base.so.0", "libggml-rpc.so"} <= {path.name for path in ours}
    assert not [path for path in mapped - ours if "ggml" in path.name]


def test_llama_bench_knows_rpc(tree: Path, tiny_model: Path, env: dict[str, str], assets: Path) -> None:
    port = free_port()
    bench = programs.prepare("llama-bench", env, str(assets))
    command: list[str | Path] = [bench.path, "-m", tiny_model, "--rpc", f"127.0.0.1:{port}", "-p", "16", "-n", "4"]
    with serving([tree / "backend-assets/util/llama-cpp-rpc-server", "-p", str(port)], port, env):
        result = subprocess.run([*command, "-o", "json"], env=bench.env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "RPC" in result.stdout


def test_verify_and_prune_know_both_parts(binary: Path, server: Program, env: dict[str, str], assets: Path) -> None:
    def run(word: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([binary, "assets", word], env=env, capture_output=True, text=True, check=False)

    assert run("verify").stdout.count("all as they were built") == 2
    head = assets / server.path.parent.name.partition(".")[0]
    assert run("prune").stdout == ""
    for fd in server.held:
        os.close(fd)
    assert run("prune").stdout == f"removed {server.path.parent}\n"
    assert (head / "backend-assets/util/llama-server").exists()
    (head / "backend-assets/util/llama-bench").unlink()
    broken = run("verify")
    assert broken.returncode == 4
    assert "llama-bench is missing" in broken.stderr
    again = programs.prepare("llama-server", env, str(assets))
    assert again.path == server.path
    assert run("verify").returncode == 0


def test_the_small_file_carries_none(
    small_binary: Path, env: dict[str, str], assets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carchive, "EXECUTABLE", str(small_binary))
    with pytest.raises(WorkerError, match="this file carries no llama-server"):
        programs.prepare("llama-server", env, str(assets))


def healthy(port: int, process: subprocess.Popen[bytes]) -> bool:
    """Whether llama-server says so within the limit."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
                return b"ok" in answer.read()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    return False
