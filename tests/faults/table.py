"""What the rows found on their last run: kept as JSON, shown as a table in docs/SECURITY.md."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.faults.rows import ROWS, Row

BEGIN, END = "<!-- faults: written by build.py faults -->", "<!-- faults: end -->"
_HEADER = ("| # | fault or attack | must come out | came out | tests |", "|---|---|---|---|---|")


def read(file: Path) -> dict[str, str]:
    """What came out, by the number of the row; of rows that were never run nothing."""
    return dict(json.loads(file.read_text())) if file.exists() else {}


def write(results: Mapping[str, str], file: Path, page: Path, machine: str) -> None:
    """Keep the results and put the table into `page`, between its two marks."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(dict(sorted(results.items(), key=lambda item: int(item[0]))), indent=1) + "\n")
    text = page.read_text()
    above, _, rest = text.partition(BEGIN)
    _, _, below = rest.partition(END)
    lines = [f"Last run: {machine}.", "", *_HEADER, *(_line(row, results) for row in ROWS)]
    page.write_text(above + "\n".join([BEGIN, "", *lines, "", END]) + below)


def _line(row: Row, results: Mapping[str, str]) -> str:
    files = sorted({test.partition("::")[0] for test in row.tests}, key=lambda file: ("faults" not in file, file))
    came = results.get(str(row.number), "not run yet")
    cells = (str(row.number), row.what, row.figure, came, ", ".join(f"`{file}`" for file in files))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
