"""One head and many workers, each with its tunnel: throughput together, memory and threads of each.

A worker lends its server to one connection at a time, so what is many here is workers.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from bench.endpoint import endpoint
from bench.peer_worker import environment, head, wait_for_worker, worker
from bench.peers import peers, versions
from bench.processes import BenchError, Program, Usage, usage
from bench.report import Row, Target, publish, ratio
from bench.traffic import Client, Turn
from tests.live.support import free_ports

ROUNDS = 5
TUNNELS = (1, 4, 8, 16, 64)
BULK = 1 << 30
"""Bytes up in each measurement, over all tunnels together."""


@dataclass(frozen=True)
class Seen:
    """One head with some tunnels, and one of its workers."""

    speed: float
    """GB/s, all tunnels busy."""
    head: tuple[Usage, Usage, Usage]
    """No connection; a connection through each tunnel, of which nothing comes; afterwards."""
    worker: tuple[Usage, Usage, Usage]


def run(scale: float) -> None:
    """Measure and publish."""
    ours = peers()[-1]
    if ours.missing:
        raise BenchError(f"the frozen file is {ours.missing}")
    binary = ours.programs[0]
    counts = [count for count in TUNNELS if count <= max(4, TUNNELS[-1] * scale)]
    seen: dict[int, list[Seen]] = {count: [] for count in counts}
    rounds = max(1, round(ROUNDS * scale))
    with tempfile.TemporaryDirectory(prefix="worker-bench-") as name, ExitStack() as stack:
        scratch = Path(name)
        server = stack.enter_context(endpoint(scratch))
        env = environment(binary, scratch)
        ports = free_ports(counts[-1])
        workers = [stack.enter_context(worker(binary, server, port, scratch, env)) for port in ports]
        for one in workers:
            wait_for_worker(one)
        for number in range(rounds):
            print(f"scale: round {number + 1} of {rounds}", flush=True)
            for count in counts:
                with head(binary, ports[:count], scratch, env) as (near, tunnels):
                    seen[count].append(_measure(near, workers[0], tunnels, max(count, int(BULK * scale))))
    publish("scale", _rows(seen), versions((ours,)))


def _measure(near: Program, far: Program, tunnels: Sequence[int], total: int) -> Seen:
    """`total` bytes up, the same number through each of `tunnels`."""
    idle = usage(near.process.pid), usage(far.process.pid)
    with ExitStack() as stack, ThreadPoolExecutor(len(tunnels)) as pool:
        script = (Turn((total // len(tunnels),), (1,)),)
        clients = [stack.enter_context(Client(port, script)) for port in tunnels]
        open_ = usage(near.process.pid), usage(far.process.pid)
        started = time.perf_counter()
        list(pool.map(Client.play, clients))
        took = time.perf_counter() - started
        busy = usage(near.process.pid), usage(far.process.pid)
    sides = list(zip(idle, open_, busy, strict=True))
    return Seen(total / took / 1e9, sides[0], sides[1])


def _rows(seen: dict[int, list[Seen]]) -> list[Row]:
    speed = {
        count: Row("up, all together", "GB/s", tuple(one.speed for one in runs), _tunnels(count))
        for count, runs in seen.items()
    }
    rows = list(speed.values())
    rows += [
        ratio(row, speed[1], Target(">=", 0.9) if count == 4 else None) for count, row in speed.items() if count > 1
    ]
    most = max(seen)
    for count in (1, most):
        runs = seen[count]
        target = Target("<=", 60) if count == 1 else None
        rows.append(Row("head, at most", "MB", tuple(one.head[2].peak for one in runs), _tunnels(count), target))
    for stage, name in enumerate(("idle", "open", "busy")):
        for what, unit in (("memory", "MB"), ("threads", "")):
            read = attrgetter(what)
            pairs = zip(seen[most], seen[1], strict=True)
            more = tuple((read(many.head[stage]) - read(one.head[stage])) / (most - 1) for many, one in pairs)
            target = Target("<=", 2) if (what, name) == ("memory", "idle") else None
            rows.append(Row(f"head: {what} of one more tunnel, {name}", unit, more, "", target))
            rows.append(Row(f"worker: {what}, {name}", unit, tuple(float(read(one.worker[stage])) for one in seen[1])))
    return rows


def _tunnels(count: int) -> str:
    return f"{count} tunnel{'s' if count > 1 else ''}"
