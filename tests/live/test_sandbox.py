"""Goal: behind the whole sandbox the file serves as without it, for root and for a user, and says what is in force."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from app.p2p import layers
from tests.live import model
from tests.live.support import children, free_port, generate, greedy, hidden_environment, serving

LIMIT = 120.0
"""Seconds: a guard against hanging."""
NOBODY = 65534
WHOLE = "network+files+calls"


@dataclass
class Worker:
    """A running worker, and what it has said so far."""

    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    def says(self, pattern: str) -> None:
        assert self.process.stderr is not None
        while not any(re.search(pattern, line) for line in self.log):
            line = self.process.stderr.readline()
            assert line, f"it ended without saying {pattern!r}:\n{''.join(self.log)}"
            self.log.append(line)

    @property
    def server(self) -> Path:
        """rpc-server's place in /proc."""
        pids = [self.process.pid]
        for pid in pids:
            pids += children(pid)
        (found,) = (pid for pid in pids if _is_server(pid))
        return Path(f"/proc/{found}")


def _is_server(pid: int) -> bool:
    return Path(f"/proc/{pid}/exe").readlink().name == "llama-cpp-rpc-server"


@dataclass(frozen=True)
class Place:
    """Who runs the worker, and where its home is."""

    binary: Path
    home: Path
    token: str
    uid: int
    assets: Path
    """Beside the home: it holds code, so no other user may own a directory above it."""

    def env(self, **more: str) -> dict[str, str]:
        return hidden_environment(
            HOME=str(self.home),
            TMPDIR=str(self.home),
            BACKEND_ASSETS_PATH=str(self.assets),
            LOCALAI_TOKEN=self.token,
            **more,
        )

    @contextmanager
    def worker(self, *flags: str, **env: str) -> Iterator[Worker]:
        port = free_port()
        command: list[str | Path] = [
            self.binary,
            "p2p-llama-cpp-rpc",
            "--listen",
            f"127.0.0.1:{port}",
            "--no-mdns",
            *flags,
        ]
        process = subprocess.Popen(
            command, env=self.env(**env), user=self.uid, group=self.uid, extra_groups=[],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            yield Worker(process, port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=LIMIT)

    def head(self, worker: Worker, *words: str | Path) -> str:
        """What a command of a head prints, root's."""
        result = subprocess.run(
            [self.binary, *words], env=self.env(WORKER_PEERS=f"127.0.0.1:{worker.port}"),
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout


@pytest.fixture(params=["root", "root in a user's home", "user"])
def place(request: pytest.FixtureRequest, binary: Path) -> Iterator[Place]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else too")
    if missing := layers.refusals():
        pytest.skip(f"this machine allows less: {missing}")
    token = subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    # Not pytest's own, which every other run of pytest closes to others.
    top = Path(os.path.realpath(tempfile.mkdtemp(prefix="worker-sandbox-")))
    top.chmod(0o755)
    home = top / "home"
    home.mkdir(mode=0o700)
    if request.param != "root":
        # .cache is there already, as in a real home, and theirs
        (home / ".cache").mkdir(mode=0o700)
        for path in (home, home / ".cache"):
            os.chown(path, NOBODY, NOBODY)
    uid = NOBODY if request.param == "user" else 0
    copied = binary
    if uid:
        copied = home / "worker"
        copied.write_bytes(binary.read_bytes())
        copied.chmod(0o755)
    assets = home.parent / "assets"
    assets.mkdir(mode=0o700)
    os.chown(assets, uid, uid)
    yield Place(copied, home, token, uid, assets)
    shutil.rmtree(top)


def test_a_model_behind_the_whole_sandbox(place: Place, clients: Path, tiny_model: Path, tree: Path) -> None:
    bare = free_port()
    with serving([tree / "backend-assets/util/llama-cpp-rpc-server", "-p", str(bare)], bare, hidden_environment()):
        expected = generate(clients, tiny_model, f"127.0.0.1:{bare}")
    with place.worker("--sandbox", "on") as worker:
        worker.says(rf"rpc-server's sandbox: {re.escape(WHOLE)}$")
        worker.says("ready, RPC protocol")
        status = (worker.server / "status").read_text()
        assert re.search(r"NoNewPrivs:\s1\n", status)
        assert re.search(rf"CapEff:\s0*{0 if place.uid else 2}\n", status)
        peer = f"127.0.0.1:{worker.port}"
        (listed,) = json.loads(place.head(worker, "list", "--json", "--no-mdns", "--peer", peer))
        assert listed["sandbox"] == WHOLE
        words = ["connect", "--no-mdns", "--base-port", str(free_port()), "--peer", peer, "--"]
        assert place.head(worker, *words, *greedy(clients, tiny_model, "{rpc}")) == expected


def test_the_cache_is_filled_and_used(place: Place, clients: Path, tmp_path: Path) -> None:
    """rpc-server keeps tensors of more than 10 MiB."""
    large = model.make(tmp_path / "large.gguf", model.Shape(layers=1, width=1024, heads=8, feed_forward=4096))
    seen: list[set[str]] = []
    answers = []
    for _ in range(2):
        with place.worker("--sandbox", "on", "--", "-c") as worker:
            worker.says("ready, RPC protocol")
            words = [
                "connect",
                "--no-mdns",
                "--base-port",
                str(free_port()),
                "--peer",
                f"127.0.0.1:{worker.port}",
                "--",
            ]
            answers.append(place.head(worker, *words, *greedy(clients, large, "{rpc}")))
            cache = place.home / ".cache/llama.cpp/rpc"
            seen.append({path.name for path in cache.iterdir() if not path.name.startswith(".")})
    assert len(seen[0]) >= 3
    assert seen[0] == seen[1]
    assert answers[0] == answers[1]


def test_off_is_said_loudly(place: Place) -> None:
    with place.worker("--sandbox", "off") as worker:
        worker.says("NO SANDBOX for rpc-server: --sandbox off")
        worker.says("ready, RPC protocol")
        peer = f"127.0.0.1:{worker.port}"
        (listed,) = json.loads(place.head(worker, "list", "--json", "--no-mdns", "--peer", peer))
        assert listed["sandbox"] == "off"
