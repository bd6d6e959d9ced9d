"""Ours, the frozen file: `p2p-llama-cpp-rpc --no-runner` in front of a server, `connect` at the client."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from bench.pair import Pair
from bench.processes import Program, program, wait_for_text
from tests.live.support import free_port, hidden_environment


def starter(binary: str) -> Callable[[int, Path], AbstractContextManager[Pair]]:
    """How to start a worker and a head of `binary`."""

    @contextmanager
    def start(server: int, scratch: Path) -> Iterator[Pair]:
        env = environment(binary, scratch)
        port = free_port()
        with worker(binary, server, port, scratch, env) as far:
            wait_for_worker(far)
            with head(binary, [port], scratch, env) as (near, tunnels):
                yield Pair(tunnels[0], (near,), (far,))

    return start


def environment(binary: str, scratch: Path) -> dict[str, str]:
    """A fresh token, and directories below `scratch`."""
    token = subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    return hidden_environment(HOME=str(scratch), BACKEND_ASSETS_PATH=f"{scratch}/assets", LOCALAI_TOKEN=token)


def worker(binary: str, server: int, port: int, scratch: Path, env: dict[str, str]) -> AbstractContextManager[Program]:
    """A worker that listens on `port` and lends the server on the port `server`; see `wait_for_worker`."""
    name = f"worker-{port}"
    command = [
        binary, "p2p-llama-cpp-rpc", "--no-runner", "--runner-address", "127.0.0.1", "--runner-port", str(server),
        "--listen", f"127.0.0.1:{port}", "--no-mdns", "--id", name, "--name", name,
    ]  # fmt: skip
    return program(command, scratch, name, env)


def wait_for_worker(running: Program) -> None:
    """Until it has seen its server answer."""
    wait_for_text(running, running.err, "ready, RPC protocol")


@contextmanager
def head(
    binary: str, workers: Sequence[int], scratch: Path, env: dict[str, str]
) -> Iterator[tuple[Program, list[int]]]:
    """A head with tunnels to the workers on those ports, and the tunnels' own ports."""
    dialled = [word for port in workers for word in ("--peer", f"127.0.0.1:{port}")]
    command = [
        binary, "connect", "--no-mdns", "--workers", str(len(workers)), "--base-port", str(free_port()), *dialled
    ]  # fmt: skip
    with program(command, scratch, f"head-{len(workers)}", env) as running:
        line = wait_for_text(running, running.out, r"(127\.0\.0\.1:.*)\n")[1]
        yield running, [int(endpoint.rpartition(":")[2]) for endpoint in line.split(",")]
