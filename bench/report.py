"""What every measurement shares: the machine's name, min/median/max, targets, the table and the JSON."""

from __future__ import annotations

import json
import operator
import platform
import ssl
import statistics
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path("build/bench")
_WIDTH = 110
_COMPARE = {">=": operator.ge, "<=": operator.le}


@dataclass(frozen=True)
class Target:
    """What the project wants of a median."""

    sense: str
    """`>=` or `<=`."""
    value: float

    def held(self, median: float) -> bool:
        """Whether it is so."""
        return bool(_COMPARE[self.sense](median, self.value))


@dataclass(frozen=True)
class Row:
    """One thing measured several times, in `unit`; of `who`, where several do the same."""

    what: str
    unit: str
    values: tuple[float, ...]
    who: str = ""
    target: Target | None = None

    @property
    def median(self) -> float:
        """The middle value."""
        return statistics.median(self.values)


def machine() -> dict[str, str]:
    """Where the figures come from. OpenSSL and Python are also those of the frozen file: this Python froze it."""
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


def ratio(left: Row, right: Row, target: Target | None = None) -> Row:
    """`left / right`, pair by pair: both of a pair were measured one after the other."""
    values = tuple(a / b for a, b in zip(left.values, right.values, strict=True))
    return Row(left.what, "x", values, f"{left.who} / {right.who}", target)


def publish(name: str, rows: Sequence[Row], facts: Mapping[str, str] | None = None) -> None:
    """Print the table of the bench `name` and write `build/bench/<name>.json`. `facts` join those of the machine."""
    facts = machine() | dict(facts or {})
    print("\n" + textwrap.fill(f"{name}: {', '.join(f'{key} {value}' for key, value in facts.items())}", _WIDTH))
    labels = [" ".join(filter(None, (row.what, row.who))) for row in rows]
    width = max(map(len, labels))
    print(f"{'':{width}} {'unit':>8} {'min':>9} {'median':>9} {'max':>9}    n")
    for label, row in zip(labels, rows, strict=True):
        values = " ".join(f"{_digits(value):>9}" for value in (min(row.values), row.median, max(row.values)))
        print(f"{label:{width}} {row.unit:>8} {values} {len(row.values):4}{_verdict(row)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": facts, "rows": [asdict(row) for row in rows]}, indent=1))
    print(f"written: {path}")


def load(name: str) -> tuple[dict[str, str], list[Row]]:
    """What `publish` wrote last: the facts and the rows, without their targets."""
    plain = json.loads((RESULTS / f"{name}.json").read_text())
    rows = [Row(row["what"], row["unit"], tuple(row["values"]), row["who"]) for row in plain["rows"]]
    return plain["machine"], rows


def _digits(value: float) -> str:
    """Three of them or all before the point."""
    return f"{value:.{2 if abs(value) < 10 else 1 if abs(value) < 100 else 0}f}"


def _verdict(row: Row) -> str:
    if row.target is None:
        return ""
    held = "held" if row.target.held(row.median) else "MISSED"
    return f"  {row.target.sense} {row.target.value:g} {held}"
