"""Starts the frozen file and llama.cpp's clients, as a user does."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_LIMIT = 60.0
"""Seconds: a guard against hanging, not a judgement."""
END_LIMIT = 15.0
"""Seconds from SIGTERM to SIGKILL."""

_HELLO = b"\x0e" + (24).to_bytes(8, "little") + bytes(24)  # RPC_CMD_HELLO, its size, no capabilities


def free_ports(count: int) -> list[int]:
    """Different ports that were free a moment ago."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def free_port() -> int:
    """A port that was free a moment ago."""
    return free_ports(1)[0]


def end(process: subprocess.Popen[Any]) -> None:
    """Ask it to end, and see to it that it does."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def hello(port: int, host: str = "127.0.0.1") -> tuple[int, int, int] | None:
    """The RPC protocol that the server at `port` answers with; None while nobody listens."""
    try:
        with socket.create_connection((host, port), timeout=10) as client:
            client.sendall(_HELLO)
            answer = b""
            while len(answer) < 36 and (more := client.recv(36 - len(answer))):
                answer += more
    except ConnectionError:
        return None
    return (answer[8], answer[9], answer[10]) if len(answer) == 36 else None


def wait_for_hello(port: int, process: subprocess.Popen[bytes] | None = None) -> tuple[int, int, int]:
    """The first answer of a server that is starting."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        if (protocol := hello(port)) is not None:
            return protocol
        assert process is None or process.poll() is None, f"it ended with status {process.returncode}"
        time.sleep(0.02)
    raise AssertionError(f"nobody answers on port {port}")


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pid: int) -> bool:
    """Whether the process `pid` ends within the limit; a zombie counts as ended."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            if re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def processes_of(assets: Path) -> list[int]:
    """The servers that run from below `assets`, once those that are about to end have ended."""
    deadline = time.monotonic() + 10
    while True:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if str((process / "exe").readlink()).startswith(str(assets)):
                    found.append(int(process.name))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


@dataclass(frozen=True)
class Running:
    """A started program, and the server that it became or runs."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def server(self) -> int:
        """The process id of rpc-server: the one child of the bootloader."""
        (child,) = children(self.process.pid)
        return child


@contextmanager
def serving(
    command: Sequence[str | Path], port: int, env: dict[str, str], cwd: Path | None = None
) -> Iterator[Running]:
    """`command` running and answering HELLO on `port`; ended with SIGTERM at the end."""
    process = subprocess.Popen(command, env=env, cwd=cwd, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        wait_for_hello(port, process)
        yield Running(process, port)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)


def greedy(clients: Path, model: Path, rpc: str) -> list[str | Path]:
    """The command that prints the greedy tokens of `model` with every layer on the servers `rpc` (`host:port,...`)."""
    return [sys.executable, Path(__file__).with_name("greedy.py"), clients / "llama-server", model, rpc]


def generate(clients: Path, model: Path, rpc: str) -> str:
    """What `greedy` prints."""
    result = subprocess.run(greedy(clients, model, rpc), capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count(",") == 47, result.stdout
    return result.stdout


def hidden_environment(**more: str) -> dict[str, str]:
    """Our environment without what would change the programs' behaviour."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LOCALAI_", "WORKER_", "GGML_"))}
    for name in ("TOKEN", "BACKEND_ASSETS_PATH", "EXTRA_LLAMA_CPP_ARGS"):
        kept.pop(name, None)
    return kept | more
