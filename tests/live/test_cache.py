"""Goal: weights that are on the worker's disk do not cross the wire, however they came there, and are right ones."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from app.cache.directory import ENTRY
from tests.faults.scale import count
from tests.faults.victim import eventually, server_below
from tests.live import model
from tests.live.lan import Host, lan, missing
from tests.live.support import free_port, generate, greedy, hidden_environment, serving
from tests.live.test_p2p import Cluster, chat_server

needs_lan = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

SHAPE = model.Shape(layers=1, width=1664, heads=13, feed_forward=1664)
"""Seven tensors of 10.6 MiB, and 3 MiB in small ones."""
LARGE = 7 * 1664 * 1664 * 4
KILLS = count(7, 50)
FEW = 5 << 20
"""Bytes of everything but the large tensors: small ones, graphs, what HELLO and TLS need."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    with lan(2, "c") as made:
        yield made


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.make(tmp_path_factory.mktemp("weights") / "model.gguf", SHAPE)


@pytest.fixture
def cluster(binary: Path, tmp_path: Path) -> Cluster:
    token = subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    return Cluster(binary, token, Path(os.path.realpath(tmp_path)))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if ENTRY.fullmatch(path.name)}


def has_files(directory: Path, count: int) -> bool:
    return len(list(directory.glob("[0-9a-f]*"))) >= count


def add(binary: Path, env: dict[str, str], *models: Path) -> str:
    """What `worker cache add` says."""
    result = subprocess.run([binary, "cache", "add", *models], env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("flavour", ["binary", "small_binary"])
@pytest.mark.parametrize("way", ["mmap", "none", "split"])
def test_what_is_added_is_what_the_server_would_have_written(
    request: pytest.FixtureRequest, clients: Path, tree: Path, env: dict[str, str], tmp_path: Path, weights: Path,
    flavour: str, way: str,
) -> None:  # fmt: skip
    """Name for name and byte for byte, with and without mmap, from one file and from parts."""
    models = [weights] if way != "split" else model.split(tmp_path / "part.gguf", SHAPE, tensors=5)
    port, seen = free_port(), tmp_path / "seen"
    bare = tree / "backend-assets/util/llama-cpp-rpc-server"
    with serving([bare, "-p", str(port), "-c"], port, hidden_environment(LLAMA_CACHE=str(seen))):
        command = bench(clients, models[0], f"127.0.0.1:{port}", "none" if way == "none" else "mmap")
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    binary: Path = request.getfixturevalue(flavour)
    assert "7 tensors" in add(binary, env | {"LLAMA_CACHE": str(tmp_path / "added")}, models[0])
    assert contents(tmp_path / "added/rpc") == contents(seen / "rpc")
    assert len(contents(seen / "rpc")) == 7


def bench(clients: Path, weights: Path, rpc: str, load_mode: str = "mmap") -> list[str | Path]:
    """Loads the model onto the servers, and hardly more."""
    command: list[str | Path] = [clients / "llama-bench", "-m", weights, "--rpc", rpc, "-ngl", "99", "-lm", load_mode]
    return [*command, "-p", "1", "-n", "0", "-r", "1", "--no-warmup"]


@pytest.fixture
def sent(cluster: Cluster, hosts: list[Host], clients: Path, weights: Path) -> Callable[[], int]:
    """Loads the model from the second machine; the bytes that left it."""

    def counter() -> int:
        path = "/sys/class/net/eth0/statistics/tx_bytes"
        return int(subprocess.run(hosts[1].command(["cat", path]), capture_output=True, check=True).stdout)

    def load() -> int:
        before = counter()
        result = cluster.finish(hosts[1], "connect", "--", *bench(clients, weights, "{rpc}"))
        assert result.returncode == 0, result.stderr
        return counter() - before

    return load


@needs_lan
def test_bytes_on_the_wire(
    cluster: Cluster, hosts: list[Host], weights: Path, sent: Callable[[], int], expected: str, clients: Path
) -> None:
    """Without a cache, with what a first load left, and with what was brought to a machine that had seen none."""
    with cluster.worker(hosts[0], "--cache", "off", where="without"):
        assert sent() > LARGE
        assert sent() > LARGE
    assert not (cluster.scratch / "without/.cache/llama.cpp").exists()

    with cluster.worker(hosts[0], where="first"):
        assert sent() > LARGE
        assert sent() < FEW
    kept = contents(cluster.scratch / "first/.cache/llama.cpp/rpc")
    assert len(kept) == 7
    with cluster.worker(hosts[0], where="first"):  # another start of the worker
        assert sent() < FEW

    add(cluster.binary, cluster.env("fresh"), weights)
    assert contents(cluster.scratch / "fresh/.cache/llama.cpp/rpc") == kept
    with cluster.worker(hosts[0], where="fresh"):
        assert sent() < FEW
        result = cluster.finish(hosts[1], "connect", "--", *greedy(clients, weights, "{rpc}"))
        assert (result.returncode, result.stdout) == (0, expected), result.stderr


@pytest.fixture(scope="module")
def expected(tree: Path, clients: Path, weights: Path) -> str:
    """The greedy tokens of a bare server without a cache."""
    port = free_port()
    with serving([tree / "backend-assets/util/llama-cpp-rpc-server", "-p", str(port)], port, hidden_environment()):
        return generate(clients, weights, f"127.0.0.1:{port}")


@needs_lan
def test_killed_in_mid_upload(cluster: Cluster, hosts: list[Host], clients: Path, weights: Path) -> None:
    """Whenever it comes, the next start leaves nothing in the cache that is not what its name says."""
    cache = cluster.scratch / "home/.cache/llama.cpp/rpc"
    cut = 0
    for kill in range(KILLS):
        with (
            cluster.worker(hosts[0], where="home") as lender,
            cluster.run(hosts[1], "connect", "--", *bench(clients, weights, "{rpc}")),
        ):
            eventually(partial(has_files, cache, 1 + kill % 7))
            time.sleep(0.003 * (kill % 5))
            os.kill(lender.process.pid, signal.SIGKILL)
            lender.process.wait()
        time.sleep(0.2)  # the server has died with it
        cut += any(len(content) < LARGE // 7 for content in contents(cache).values())
        with cluster.worker(hosts[0], where="home"):
            pass
        verified = subprocess.run([cluster.binary, "cache", "verify"], env=cluster.env("home"), capture_output=True)
        assert verified.returncode == 0, verified.stdout
        shutil.rmtree(cache)
    assert cut, "no kill came in mid-write: this test could not fail"


@needs_lan
@pytest.mark.parametrize("victim", ["worker", "server"])
def test_what_is_whole_outlives_a_kill(
    cluster: Cluster, hosts: list[Host], clients: Path, weights: Path, sent: Callable[[], int], victim: str
) -> None:
    """Killed while a head holds the server: nothing has been seen whole by then, and one file is cut short."""
    cache = cluster.scratch / "home/.cache/llama.cpp/rpc"
    with cluster.worker(hosts[0], where="home") as lender:
        with cluster.run(hosts[1], "connect", "--", *chat_server(clients, weights)) as head:
            head.says("model loaded")
            assert len(contents(cache)) == 7
            last = max(cache.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime)
            os.truncate(last, 1 << 20)
            shutil.copy(last, cache / ("0" * 16))
            after = len(lender.lines)
            os.kill(lender.process.pid if victim == "worker" else server_below(lender.process.pid), signal.SIGKILL)
            if victim == "server":
                lender.says("ready, RPC protocol", after)
            head.end()
        if victim == "server":
            assert len(contents(cache)) == 6
            assert LARGE // 7 < sent() < LARGE // 7 + FEW
    with cluster.worker(hosts[0], where="home") as lender:
        assert len(contents(cache)) == (6 if victim == "worker" else 7)
        assert sent() < LARGE // 7 + FEW
        assert sent() < FEW
