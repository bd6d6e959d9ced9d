"""The real client: how fast a model loads through each peer, and how fast it generates."""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench import model, shapes
from bench.llama import Run, llama_bench, rpc_server
from bench.peers import peers, started, versions
from bench.relay import compare
from bench.report import RESULTS, Row, Target, publish
from bench.shapes import script
from bench.traffic import size

ROUNDS = 7
TOKENS = 128


def run(scale: float) -> None:
    """Measure and publish."""
    path = model.make(RESULTS)
    there = peers()
    seen: dict[str, list[Run]] = {}
    rounds, count = max(1, round(ROUNDS * scale)), max(8, round(TOKENS * scale))
    with (
        tempfile.TemporaryDirectory(prefix="worker-bench-") as scratch,
        rpc_server(Path(scratch)) as server,
        started(there, server) as pairs,
    ):
        llama_bench(server, path, 1)  # the file is in memory now, for all of them
        for number in range(rounds):
            print(f"tokens: round {number + 1} of {rounds}", flush=True)
            for name, pair in pairs.items():
                seen.setdefault(name, []).append(llama_bench(pair.port, path, count))
    megabytes = size(script(shapes.read().load))[0] / 1e6
    upload = {
        name: Row("model upload", "MB/s", tuple(megabytes / run.load for run in runs), name)
        for name, runs in seen.items()
    }
    speed = {
        name: Row("generation", "tokens/s", tuple(run.tokens for run in runs), name) for name, runs in seen.items()
    }
    rows = [
        *upload.values(),
        *compare(upload, {"stunnel": Target(">=", 1.5)}),
        *speed.values(),
        *compare(speed, {"direct": Target(">=", 0.97), "stunnel": Target(">=", 1.0)}),
    ]
    publish("tokens", rows, versions(there))
