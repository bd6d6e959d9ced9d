"""`bench picture`: the newest `bench relay`, drawn to docs/speed.svg."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.processes import BenchError
from bench.report import RESULTS, Row, load

FILE = Path("docs/speed.svg")
_OURS = "worker"
_LEFT = 130  # pixels for the names
_BAR = 14
_GAP = 4
_SCALE = 220  # pixels of the longest bar of each measure
_PANEL = _LEFT + _SCALE + 60
_TEXT = "#24292f"
_COLOURS = {True: "#0a6cbd", False: "#b8c0c8"}


@dataclass(frozen=True)
class Panel:
    """One chart: a bar a peer for each of some measures."""

    title: str
    measures: tuple[str, ...]
    unit: str


_PANELS = (
    Panel("Throughput in GB/s: longer is better", ("up", "down", "llama.cpp loads"), "GB/s"),
    Panel(
        "Round trip in µs: shorter is better",
        ("64 B both ways", "16 KiB up, 128 KiB down", "llama.cpp's token, mean"),
        "us",
    ),
)


def run(scale: float) -> None:  # noqa: ARG001 - as every bench
    """Draw and write."""
    if not (RESULTS / "relay.json").exists():
        raise BenchError("there is nothing to draw yet: start python3 build.py bench relay first")
    facts, rows = load("relay")
    FILE.write_text(draw(facts, rows))
    print(f"written: {FILE}")


def draw(facts: dict[str, str], rows: Sequence[Row]) -> str:
    """An SVG document. A bar is a median, the line on it reaches from the least to the greatest value.

    No relay at all is a number under the bars: its bar would dwarf the others.
    """
    parts, height = [], 0
    for number, panel in enumerate(_PANELS):
        body, bottom = _panel(panel, rows)
        parts.append(f'<g transform="translate({16 + number * _PANEL},28)">{body}</g>')
        height = max(height, bottom + 28)
    peers = ", ".join(dict.fromkeys(f"{row.who} {facts.get(row.who, '')}" for row in rows if _is_peer(row)))
    where = f"{facts['cpu']}, Linux {facts['kernel']}, {facts['openssl']}, {facts['date']}; both ends on this machine."
    for line in (f"{peers}.", where):
        height += 16
        parts.append(_label(16, height, line, size=10))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _PANEL + 16}" height="{height + 12}" '
        f'font-family="sans-serif" fill="{_TEXT}">\n<rect width="100%" height="100%" rx="6" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _is_peer(row: Row) -> bool:
    return row.who not in ("", "direct") and " / " not in row.who


def _panel(panel: Panel, rows: Sequence[Row]) -> tuple[str, int]:
    """The chart and how far down it reaches."""
    shown = [row for row in rows if row.what in panel.measures and row.unit == panel.unit]
    parts, y = [_label(0, 0, panel.title, weight="bold", size=13)], 24
    for measure in panel.measures:
        here = [row for row in shown if row.what == measure]
        direct = next((f" (no relay: {_number(row.median)})" for row in here if row.who == "direct"), "")
        parts.append(_label(0, y, measure + direct, size=12))
        y += 8
        theirs = list(filter(_is_peer, here))
        longest = max((max(row.values) for row in theirs), default=1.0)
        for row in theirs:
            parts.append(_bar(row, y, _SCALE / longest))
            y += _BAR + _GAP
        y += 20
    return "".join(parts), y


def _bar(row: Row, y: int, scale: float) -> str:
    middle, end = y + _BAR / 2, max(row.values) * scale
    return (
        _label(_LEFT - 8, y + _BAR - 3, row.who, anchor="end")
        + f'<rect x="{_LEFT}" y="{y}" width="{row.median * scale:.1f}" height="{_BAR}" '
        f'fill="{_COLOURS[row.who == _OURS]}"/>'
        f'<path d="M{_LEFT + min(row.values) * scale:.1f},{middle}H{_LEFT + end:.1f}" stroke="{_TEXT}"/>'
        + _label(_LEFT + end + 6, y + _BAR - 3, _number(row.median))
    )


def _label(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" font-size="{size}">'
        f"{escape(text)}</text>"
    )


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"
