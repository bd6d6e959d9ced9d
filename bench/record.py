"""`bench record`: what llama-bench sends while it loads and generates becomes shapes.json anew."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from bench import model, shapes
from bench.llama import llama_bench, rpc_server
from bench.processes import BenchError
from bench.recorder import recording
from bench.report import RESULTS
from bench.shapes import Exchange, Shapes

_TOKENS = 32


def run(scale: float) -> None:  # noqa: ARG001 - as every bench; a record is always whole
    """Record and write."""
    path = model.make(RESULTS)
    with (
        tempfile.TemporaryDirectory(prefix="worker-bench-") as scratch,
        rpc_server(Path(scratch)) as server,
        recording(server) as (port, record),
    ):
        llama_bench(port, path, _TOKENS)
    about = (
        f"llama-bench, {model.SHAPE.parameters / 1e6:.0f} M parameters in F16, {model.SHAPE.layers} layers, "
        f"width {model.SHAPE.width}, vocabulary {model.VOCABULARY}"
    )
    shape = Shapes(about, shapes.fold(loading(record.exchanges)), shapes.fold(token(record.exchanges)))
    shapes.write(shape)
    for name, exchanges in (("load", shape.load), ("token", shape.token)):
        print(f"{name}: {describe(exchanges)}")
    print(f"written: {shapes.FILE}")


def loading(exchanges: Sequence[Exchange]) -> tuple[Exchange, ...]:
    """All before the first graph."""
    return tuple(exchanges[: _graphs(exchanges)[0]])


def token(exchanges: Sequence[Exchange]) -> tuple[Exchange, ...]:
    """From behind one graph's answer to the next one's: the sequence that was seen most often."""
    ends = _graphs(exchanges)
    seen = Counter(tuple(exchanges[before + 1 : end + 1]) for before, end in pairwise(ends))
    return seen.most_common(1)[0][0]


def describe(exchanges: Sequence[Exchange]) -> str:
    """Round trips, and each command with how often it is sent and its bytes."""
    count, bytes_up = Counter[str](), Counter[str]()
    for exchange in exchanges:
        for request in exchange.requests:
            count[request.command] += exchange.times
            bytes_up[request.command] += exchange.times * request.bytes
    down = sum(exchange.answer * exchange.times for exchange in exchanges)
    parts = [f"{count[command]} {command} ({size} bytes)" for command, size in bytes_up.most_common()]
    trips = sum(exchange.times for exchange in exchanges)
    return f"{trips} round trips, {sum(bytes_up.values())} bytes up, {down} down; {', '.join(parts)}"


def _graphs(exchanges: Sequence[Exchange]) -> list[int]:
    """The places of the exchanges in which a graph is computed."""
    places = [
        place
        for place, exchange in enumerate(exchanges)
        if any(request.command in ("GRAPH_COMPUTE", "GRAPH_RECOMPUTE") for request in exchange.requests)
    ]
    if len(places) < 2:
        raise BenchError(f"{len(places)} graphs were computed: not enough to tell a token from another")
    return places
