"""What every measurement shares: the machine's name, min/median/max, the table and the JSON."""

from __future__ import annotations

import json
import platform
import ssl
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path("build/bench")


@dataclass(frozen=True)
class Row:
    """One thing measured several times, in `unit`."""

    what: str
    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)


def machine() -> dict[str, str]:
    """Where the figures come from."""
    cpus = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return {
        "cpu": f"{len(cpus)} x {cpus[0] if cpus else platform.machine()}",
        "kernel": platform.release(),
        "openssl": ssl.OPENSSL_VERSION,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def differences(left: Sequence[float], right: Sequence[float]) -> tuple[float, ...]:
    """`left - right`, pair by pair: both of a pair were measured one after the other."""
    return tuple(a - b for a, b in zip(left, right, strict=True))


def publish(name: str, rows: Sequence[Row]) -> None:
    """Print the table of the bench `name` and write `build/bench/<name>.json`."""
    facts = machine()
    print(f"\n{name}: {', '.join(f'{key} {value}' for key, value in facts.items())}")
    width = max(len(row.what) for row in rows)
    print(f"{'':{width}}  {'unit':>6} {'min':>9} {'median':>9} {'max':>9}    n")
    for row in rows:
        values = " ".join(f"{value:9.1f}" for value in (min(row.values), row.median, max(row.values)))
        print(f"{row.what:{width}}  {row.unit:>6} {values} {len(row.values):4}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1))
    print(f"written: {path}")
