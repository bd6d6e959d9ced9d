"""Bytes and round trips through each peer: bulk, ping-pong, and what llama.cpp sends, played again."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import shapes
from bench.endpoint import endpoint
from bench.pair import Pair
from bench.peers import peers, started, versions
from bench.report import Row, Target, publish, ratio
from bench.traffic import Client, Script, Turn, size

ROUNDS = 7
BULK = 1 << 30
"""Bytes each way and round: a second or two."""
TRIPS = 2000
TOKENS = 500
OURS = "worker"
_GIB = 1 << 30


@dataclass(frozen=True)
class Seen:
    """One script through one peer."""

    script: Script
    took: list[float]
    """Seconds of each turn."""
    cpu: float
    """Seconds of processor time of both relays."""


@dataclass(frozen=True)
class Measure:
    """One kind of traffic and what is told of it."""

    what: str
    unit: str
    script: Script
    value: Callable[[Seen], float]
    targets: dict[str, Target]
    """By the peer that we are compared with."""
    cpu_target: Target | None = None
    """Of our processor time per GiB beside stunnel's; only where there are enough bytes for the kernel's clock."""


def _throughput(seen: Seen) -> float:
    return sum(size(seen.script)) / sum(seen.took) / 1e9


def _median_trip(seen: Seen) -> float:
    return statistics.median(seen.took) * 1e6


def _mean_trip(seen: Seen) -> float:
    return statistics.mean(seen.took) * 1e6


def measures(scale: float) -> tuple[Measure, ...]:
    """All of them; `scale` is 1 for a whole run."""
    bulk, trips, tokens = (max(1, int(number * scale)) for number in (BULK, TRIPS, TOKENS))
    recorded = shapes.read()
    fast = {"stunnel": Target(">=", 1.5), "haproxy": Target(">=", 1.3)}
    cheap = Target("<=", 0.70)
    return (
        Measure("up", "GB/s", (Turn((bulk,), (1,)),), _throughput, fast, cheap),
        Measure("down", "GB/s", (Turn((1,), (bulk,)),), _throughput, fast, cheap),
        Measure("llama.cpp loads", "GB/s", shapes.script(recorded.load), _throughput, {"stunnel": Target(">=", 1.5)}),
        Measure("64 B both ways", "us", (Turn((64,), (64,), trips),), _median_trip, {"stunnel": Target("<=", 1.15)}),
        Measure(
            "16 KiB up, 128 KiB down", "us", (Turn((1 << 14,), (1 << 17,), trips),), _median_trip,
            {"stunnel": Target("<=", 0.90)},
        ),
        # The mean: a relay that stalls now and then makes generation as slow as one that always takes that long.
        Measure("llama.cpp's token, mean", "us", shapes.script(recorded.token, tokens), _mean_trip, {}),
    )  # fmt: skip


def run(scale: float) -> None:
    """Measure and publish."""
    there = peers()
    todo = measures(scale)
    seen: dict[tuple[str, str], list[Seen]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="worker-bench-") as scratch,
        endpoint(Path(scratch)) as server,
        started(there, server) as pairs,
    ):
        for number in range(max(1, round(ROUNDS * scale))):
            print(f"relay: round {number + 1} of {max(1, round(ROUNDS * scale))}", flush=True)
            for measure in todo:
                for name, pair in pairs.items():
                    seen.setdefault((measure.what, name), []).append(play(pair, measure.script))
        sides = {name: pair.sides for name, pair in pairs.items()}
    rows = [row for measure in todo for row in _rows(measure, {name: seen[measure.what, name] for name in pairs})]
    for name, usages in sides.items():
        if name != "direct":
            peak = max(side.peak for side in usages)
            target = Target("<=", 60) if name == OURS else None
            rows.append(Row("peak memory of a relay", "MB", (peak,), name, target))
    publish("relay", rows, versions(there))


def play(pair: Pair, script: Script) -> Seen:
    """`script` once through `pair`."""
    with Client(pair.port, script) as client:
        before = pair.cpu
        took = client.play()
        return Seen(script, took, pair.cpu - before)


def _rows(measure: Measure, seen: dict[str, list[Seen]]) -> list[Row]:
    speed = {
        name: Row(measure.what, measure.unit, tuple(map(measure.value, runs)), name) for name, runs in seen.items()
    }
    rows = [*speed.values(), *compare(speed, measure.targets)]
    if measure.cpu_target:
        gib = sum(size(measure.script)) / _GIB
        cpu = {
            name: Row(f"{measure.what}, processor", "s/GiB", tuple(run.cpu / gib for run in runs), name)
            for name, runs in seen.items()
            if name != "direct"
        }
        rows += [*cpu.values(), *compare(cpu, {"stunnel": measure.cpu_target})]
    return rows


def compare(rows: dict[str, Row], targets: dict[str, Target]) -> list[Row]:
    """Ours beside each peer that was measured."""
    if OURS not in rows:
        return []
    return [ratio(rows[OURS], row, targets.get(name)) for name, row in rows.items() if name != OURS]
