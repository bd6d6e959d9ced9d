"""Goal: two copies of one file and a model answer a chat; a worker that is lost is named and done without.

Every machine is a network namespace, every program the real one. What `serve` does with what it is told:
tests/p2p/test_serving.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.live import model
from tests.live.lan import Host, lan, missing
from tests.live.support import hidden_environment, wait_until_gone
from tests.live.test_p2p import LIMIT, Cluster, Program, _descendants

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

QUESTION = {"messages": [{"role": "user", "content": "Who holds how much?"}], "temperature": 0, "seed": 1}
PORT = "8080"
"""llama-server's own."""

ASK = f"""
import json, sys, time, urllib.error, urllib.request
deadline = time.monotonic() + {LIMIT}
while True:
    try:
        with urllib.request.urlopen("http://127.0.0.1:{PORT}/v1/chat/completions", sys.argv[1].encode()) as answer:
            for line in answer:
                print(line.decode(), end="", flush=True)
        break
    except (urllib.error.URLError, ConnectionError):
        if time.monotonic() > deadline:
            raise
        time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Two workers' machines, and the head's."""
    with lan(3, "sv") as made:
        yield made


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 MB, so that an answer takes seconds."""
    shape = model.Shape(layers=8, width=1024, heads=16, feed_forward=2816, context=2048)
    return model.make(tmp_path_factory.mktemp("model") / "slow.gguf", shape)


@pytest.fixture
def cluster(binary: Path, tmp_path: Path) -> Cluster:
    token = subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    return Cluster(binary, token, Path(os.path.realpath(tmp_path)))


def asking(host: Host, **more: object) -> list[str | Path]:
    """A command on `host` that prints what llama-server answers there; it waits until there is one."""
    words: Sequence[str | Path] = [sys.executable, "-c", ASK, json.dumps(QUESTION | more)]
    return host.command(words)


def answer(host: Host, tokens: int = 24) -> str:
    """The text of a whole chat answer."""
    done = subprocess.run(asking(host, max_tokens=tokens), capture_output=True, timeout=2 * LIMIT, check=True)
    plain: dict[str, Any] = json.loads(done.stdout)
    assert plain["usage"]["completion_tokens"] >= 1
    text: str = plain["choices"][0]["message"]["content"]
    return text


def llama_server(serve: Program) -> int:
    """The process id of the one that `serve` runs."""
    for pid in _descendants(serve.process.pid):
        if Path(f"/proc/{pid}/exe").readlink().name == "llama-server":
            return pid
    raise AssertionError("there is no llama-server")


def ready(serve: Program) -> list[str]:
    """Wait for the block that tells where it listens and who holds how much; its lines."""
    lines = [serve.stdout_line()]
    assert lines[0] == f"llama-server is ready on http://127.0.0.1:{PORT}"
    while not lines[-1].startswith("  this machine"):
        assert lines[-1], serve.log
        lines.append(serve.stdout_line())
    return lines


@contextmanager
def bare(head: Host, server: Path, tree: Path, pid: int, model_file: Path) -> Iterator[None]:
    """The llama-server that runs as `pid`, its environment and arguments the same, with a bare rpc-server beside it."""
    variables = dict(
        word.split("=", 1) for word in Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0") if "=" in word
    )
    del variables["LLAMA_ARG_RPC"]
    rpc_server = tree / "backend-assets/util/llama-cpp-rpc-server"
    rpc = subprocess.Popen(
        head.command([rpc_server, "-p", "50052"]),
        env=hidden_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    awaited = [sys.executable, "-c", "from tests.live.support import wait_for_hello; wait_for_hello(50052)"]
    subprocess.run(head.command(awaited), check=True)
    chat = subprocess.Popen(
        head.command([server, "-m", model_file, "--rpc", "127.0.0.1:50052"]),
        env=variables,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        for process in (chat, rpc):
            process.terminate()
            process.wait(LIMIT)


def test_a_chat_is_answered_as_without_the_relay(
    cluster: Cluster, hosts: list[Host], tree: Path, slow_model: Path, tmp_path: Path
) -> None:
    with (
        cluster.worker(hosts[0], "--name", "left"),
        cluster.run(hosts[2], "serve", "--workers", "1", "--", "-m", slow_model) as serve,
    ):
        held = ready(serve)[1]
        assert re.fullmatch(r"  left \(\S+\) +[1-9]\d\d\.\d\d MiB of the model", held)
        through = answer(hosts[2])
        pid = llama_server(serve)
        assert cluster.token.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        server = tmp_path / "server"
        shutil.copytree(Path(f"/proc/{pid}/exe").readlink().parent, server)
        environment = Path(f"/proc/{pid}/environ")
        with bare(hosts[1], server / "llama-server", tree, int(environment.parent.name), slow_model):
            assert answer(hosts[1]) == through
        assert len(through) > 8
        assert serve.end() == 0
        assert wait_until_gone(pid)


def test_a_worker_that_dies_during_an_answer_is_named_and_done_without(
    cluster: Cluster, hosts: list[Host], slow_model: Path
) -> None:
    with (
        cluster.worker(hosts[0], "--name", "left") as left,
        cluster.run(hosts[2], "serve", "--workers", "2", "--timeout", "6", "--", "-m", slow_model) as serve,
    ):
        with cluster.worker(hosts[1], "--name", "right") as right:
            assert {line.split()[0] for line in ready(serve)[1:]} == {"left", "right", "this"}
            kill_during_an_answer(hosts[2], right)
            seen = serve.says("right was lost: llama-server cannot go on without it")
            seen = serve.says("having lost right; it is started again in 1 s", seen)
            serve.says("only 1 of 2 workers after 6 s: .*; going on with those", seen)
            assert {line.split()[0] for line in ready(serve)[1:]} == {"left", "this"}
            assert answer(hosts[2])
        with cluster.worker(hosts[1], "--name", "right"):
            kill_during_an_answer(hosts[2], left)
            seen = serve.says("having lost left; it is started again in 2 s", seen)
            assert "right" in {line.split()[0] for line in ready(serve)[1:]}
            assert answer(hosts[2])
            assert serve.end() == 0


def kill_during_an_answer(head: Host, worker: Program) -> None:
    """`kill -9`, once the first words have come."""
    command = asking(head, max_tokens=1500, stream=True, ignore_eos=True)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout is not None
        assert client.stdout.readline().startswith(b"data: ")
        worker.process.kill()
        client.stdout.read()  # it ends, one way or the other
        client.kill()


def test_nothing_outlives_a_serve_that_is_killed(cluster: Cluster, hosts: list[Host], tiny_model: Path) -> None:
    with (
        cluster.worker(hosts[0]),
        cluster.run(hosts[2], "serve", "--workers", "1", "--", "-m", tiny_model) as serve,
    ):
        ready(serve)
        processes = _descendants(serve.process.pid)
        assert llama_server(serve) in processes
        serve.process.kill()
        assert all(map(wait_until_gone, processes))


def test_a_wrong_argument_is_llama_servers_own_error(cluster: Cluster, hosts: list[Host], tiny_model: Path) -> None:
    with cluster.worker(hosts[0]):
        for wrong, told in ((["--no-such-flag"], "--no-such-flag"), (["-m", "/nonexistent.gguf"], "nonexistent.gguf")):
            done = cluster.finish(hosts[2], "serve", "--workers", "1", "--", *wrong)
            assert done.returncode == 1, done.stderr
            assert told in done.stderr
            assert "llama-server ended with exit status 1" in done.stderr
            assert "started again" not in done.stderr


def test_the_benchmark_prints_its_table(cluster: Cluster, hosts: list[Host], tiny_model: Path) -> None:
    with cluster.worker(hosts[0]):
        done = cluster.finish(
            hosts[2], "bench", "--workers", "1", "--", "-m", tiny_model, "-p", "16", "-n", "8", "-r", "1"
        )
        assert done.returncode == 0, done.stderr
        rows = [line for line in done.stdout.splitlines() if line.startswith("| llama")]
        assert len(rows) == 2, done.stdout
        assert all("RPC" in row for row in rows)
        wrong = cluster.finish(hosts[2], "bench", "--workers", "1", "--", "--no-such-flag")
        assert wrong.returncode == 1


def test_the_first_screen_of_the_readme_word_for_word(
    binary: Path, hosts: list[Host], tiny_model: Path, tmp_path: Path
) -> None:
    screen = Path("README.md").read_text().partition("\n## Build it")[0]
    once, lend, serve, ask, _ = re.findall(r"(?m)(?:^    .+\n)+", screen)
    if shutil.which("curl") is None:
        pytest.skip("the README asks with curl, which is not installed")
    directories = [tmp_path / "one", tmp_path / "other"]
    for directory in directories:
        directory.mkdir()
        shutil.copy(binary, directory / "worker")
    shutil.copy(tiny_model, directories[1] / "model.gguf")

    def start(host: Host, directory: Path, script: str) -> subprocess.Popen[str]:
        env = {"PATH": f"{directory}:/usr/bin:/bin", "HOME": str(directory), "TMPDIR": str(directory)}
        env["BACKEND_ASSETS_PATH"] = str(directory / "assets")
        command = host.command(["sh", "-e", "-c", script])
        return subprocess.Popen(
            command,
            cwd=directory,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def finish(host: Host, directory: Path, script: str) -> str:
        with start(host, directory, script) as process:
            out, _ = process.communicate(timeout=LIMIT)
            assert process.returncode == 0, script
        return out

    finish(hosts[0], directories[0], once)
    shutil.copy(directories[0] / "token", directories[1] / "token")
    with start(hosts[0], directories[0], lend) as worker, start(hosts[1], directories[1], serve) as head:
        try:
            assert head.stdout is not None
            assert head.stdout.readline() == f"llama-server is ready on http://127.0.0.1:{PORT}\n"
            assert json.loads(finish(hosts[1], directories[1], ask))["choices"][0]["message"]["role"] == "assistant"
        finally:
            for process in (head, worker):
                os.killpg(process.pid, signal.SIGTERM)
