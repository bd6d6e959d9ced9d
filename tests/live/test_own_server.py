"""Goal: the user's own rpc-server serves in the sandbox as the carried one does, and another protocol is told early."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.p2p import layers
from tests.live.support import free_port, generate, greedy, hidden_environment, serving
from tests.live.test_sandbox import LIMIT, WHOLE, Place, Worker

PYTHON = Path("/usr/bin/python3")
"""Runs the stand-in: the sandbox leaves what is below /usr to a server."""


@pytest.fixture
def place(binary: Path, tmp_path: Path) -> Iterator[Place]:
    if missing := layers.refusals():
        pytest.skip(f"this machine allows less: {missing}")
    token = subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    home = Path(os.path.realpath(tmp_path)) / "home"
    home.mkdir(mode=0o700)
    yield Place(binary, home, token, os.geteuid(), home.parent / "assets")


@pytest.fixture
def own(tree: Path, place: Place) -> Path:
    """The bare server and its libraries, in the home of a user."""
    copied = place.home / "llama.cpp"
    shutil.copytree(tree / "backend-assets/util", copied)
    return copied / "llama-cpp-rpc-server"


@pytest.fixture
def other(place: Place) -> Path:
    """A server of whatever version its first argument names."""
    if not PYTHON.exists():
        pytest.skip(f"there is no {PYTHON} for the stand-in")
    program = place.home / "rpc-server"
    source = Path(__file__).with_name("other_version.py").read_text()
    program.write_text(f"#!{PYTHON} -IS\n{source}")
    program.chmod(0o755)
    return program


def refused(place: Place, *flags: str | Path) -> str:
    """The error of a worker that does not start."""
    result = subprocess.run(
        [place.binary, "p2p-llama-cpp-rpc", "--no-mdns", "--listen", "127.0.0.1:0", *flags],
        env=place.env(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert result.returncode == 2, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert [line for line in result.stderr.splitlines() if line.startswith("hint: ")]
    return error


def peers(*workers: Worker) -> list[str]:
    """Flags of a head that knows these workers and no others."""
    named = [word for worker in workers for word in ("--peer", f"127.0.0.1:{worker.port}")]
    return ["--no-mdns", *named]


def connect(place: Place, workers: list[Worker], *command: str | Path) -> subprocess.CompletedProcess[str]:
    words = ["connect", *peers(*workers), "--base-port", str(free_port()), "--workers", str(len(workers)), "--"]
    return subprocess.run(
        [place.binary, *words, *command],
        env=place.env(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip


def test_it_serves_in_the_whole_sandbox_and_nothing_is_unpacked(
    place: Place, own: Path, clients: Path, tiny_model: Path
) -> None:
    bare = free_port()
    with serving([own, "-p", str(bare)], bare, hidden_environment()):
        expected = generate(clients, tiny_model, f"127.0.0.1:{bare}")
    with place.worker("--sandbox", "on", "--server", str(own), "--", "-t", "1", "-c") as worker:
        worker.says("ready, RPC protocol 7")
        assert (worker.server / "exe").readlink() == own
        assert (worker.server / "cwd").readlink() == own.parent
        assert place.token.encode() not in (worker.server / "environ").read_bytes()
        (listed,) = json.loads(place.head(worker, "list", "--json", *peers(worker)))
        assert (listed["sandbox"], listed["rpc"]) == (WHOLE, "7.0.0")
        assert listed["llama_cpp"] is listed["llama_cpp_commit"] is None
        assert listed["devices"][0]["name"] == "CPU"
        result = connect(place, [worker], *greedy(clients, tiny_model, "{rpc}"))
    assert (result.returncode, result.stdout) == (0, expected), result.stderr
    assert (place.home / ".cache/llama.cpp/rpc").is_dir()
    assert not place.assets.exists()


@pytest.mark.parametrize("version", ["4.0.1", "9.2.0", "3.6.1", "2.0.0"])
def test_another_version_is_named_on_both_sides_before_anything_starts(place: Place, other: Path, version: str) -> None:
    with place.worker("--sandbox", "on", "--server", str(other), "--", version) as worker:
        worker.says(rf"ready, RPC protocol {version}")
        worker.says(rf"RPC protocol {version}, the llama.cpp that this file carries 7\.0\.0")
        (listed,) = json.loads(place.head(worker, "list", "--json", *peers(worker)))
        assert (listed["rpc"], listed["state"]) == (version, "ready")
        result = connect(place, [worker], "sh", "-c", "echo it runs >&2")
        lines = result.stderr.splitlines()
        (said,) = [number for number, line in enumerate(lines) if f"speak RPC protocol {version}: the command" in line]
        assert lines.index("it runs") > said


def test_it_is_not_used_together_with_the_carried_one(place: Place, other: Path) -> None:
    with (
        place.worker("--name", "desk") as carried,
        place.worker("--name", "attic", "--instance", "2", "--server", str(other), "--", "4.0.1") as foreign,
    ):
        carried.says("ready, RPC protocol 7")
        foreign.says("ready, RPC protocol 4")
        result = connect(place, [carried, foreign], "echo", "it runs")
    assert (result.returncode, result.stdout) == (1, "")
    assert "error: the workers speak different RPC protocols: desk 7.0.0, attic 4.0.1" in result.stderr


def test_the_carried_llama_cpp_leaves_it_out_before_anything_starts(place: Place, other: Path) -> None:
    with place.worker("--name", "attic", "--server", str(other), "--", "4.0.1") as worker:
        worker.says("ready, RPC protocol 4")
        for name in ("serve", "bench"):
            result = subprocess.run(
                [place.binary, name, *peers(worker), "--timeout", "3", "--", "-m", place.home / "no.gguf"],
                env=place.env(), capture_output=True, text=True, timeout=LIMIT, check=False,
            )  # fmt: skip
            assert result.returncode == 6, result.stderr
            why = "speaks RPC protocol 4.0.1, the llama.cpp of this file 7.0.0"
            assert f"attic is left out: it {why}" in result.stderr
            assert f"error: no free worker after 3 s: attic {why}" in result.stderr
            assert "no.gguf" not in result.stderr


def test_a_server_that_is_none_is_given_up(place: Place) -> None:
    result = subprocess.run(
        [place.binary, "p2p-llama-cpp-rpc", "--no-mdns", "--listen", "127.0.0.1:0", "--server", "/bin/false"],
        env=place.env(), capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert result.returncode == 7, result.stderr
    assert "error: rpc-server keeps crashing" in result.stderr
    assert "it must take --host and --port as llama.cpp's rpc-server does" in result.stderr


def test_what_cannot_be_used_is_one_clear_error_each(place: Place, own: Path) -> None:
    assert "no such file" in refused(place, "--server", own.parent / "absent")
    assert "not a regular file" in refused(place, "--server", own.parent)
    assert "cannot be had with --no-runner" in refused(place, "--server", own, "--no-runner")
    for flags in (["--device", "CPU"], ["--require-gpu"], ["--backend-dir", str(own.parent)]):
        assert "cannot be had with --server" in refused(place, "--server", own, *flags)
    assert "address is not to be chosen" in refused(place, "--server", own, "--", "--port", "1")
    own.chmod(0o644)
    assert "not executable" in refused(place, "--server", own)
    own.chmod(0o755)
    own.parent.chmod(0o777)
    assert "can be written by other users" in refused(place, "--server", own)
