"""llama.cpp's own programs: the bare rpc-server and llama-bench in front of it."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, given, program, wait_for_port
from tests.live.support import free_port, hidden_environment

THREADS = "1"
"""For client and server each: the machine's other processor is left to the relays."""


@dataclass(frozen=True)
class Run:
    """What one llama-bench measured."""

    load: float
    """Seconds from the start of loading until the context is ready: the upload, and what it takes at both ends."""
    tokens: float
    """Generated a second."""


@contextmanager
def rpc_server(scratch: Path) -> Iterator[int]:
    """The port of a bare rpc-server on loopback."""
    port = free_port()
    command: list[str | Path] = [given("WORKER_TEST_SERVER"), "-H", "127.0.0.1", "-p", str(port), "-t", THREADS]
    with program(command, scratch, "rpc-server", hidden_environment()) as running:
        wait_for_port(running, port)
        yield port


def llama_bench(port: int, model: Path, tokens: int) -> Run:
    """Load `model` into the server at `port` and generate `tokens`, with llama-bench. Raises BenchError."""
    command: list[str | Path] = [
        given("WORKER_TEST_CLIENTS") / "llama-bench", "-m", model, "--rpc", f"127.0.0.1:{port}", "-ngl", "99",
        "-p", "0", "-n", str(tokens), "-r", "1", "-t", THREADS, "-o", "json", "--progress",
    ]  # fmt: skip
    began: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        line = ""
        for line in process.stderr:
            for stage in ("starting", "warmup generation run"):
                if line.rstrip().endswith(stage):
                    began[stage] = time.perf_counter()
        out = process.stdout.read()
    if process.returncode != 0 or len(began) != 2:
        raise BenchError(f"llama-bench ended with status {process.returncode}; its last word: {line.strip()}")
    (result,) = json.loads(out)
    return Run(began["warmup generation run"] - began["starting"], float(result["avg_ts"]))
