"""Tries the rows and says what came out: `python -m tests.faults [ROW ...]`.

With WORKER_FAULTS=full it does so with the full counts, judges the figures and writes the table, else as the test
command does.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.faults import table
from tests.faults.rows import ROWS, Row
from tests.faults.scale import FULL

RESULTS = Path("build/faults.json")
PAGE = Path("docs/SECURITY.md")


class Collector:
    """A pytest plugin that keeps what each test found."""

    def __init__(self) -> None:
        self.told: dict[str, list[str]] = defaultdict(list)
        """By `row N`."""
        self.outcomes: dict[str, list[str]] = defaultdict(list)
        """By test, one for each of its parameters: "passed", "failed", or why it was skipped."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test has ended."""
        test = report.nodeid.partition("[")[0]
        if report.when == "call":
            for name, text in report.user_properties:
                self.told[name].append(str(text))
        if report.skipped:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self.outcomes[test].append(reason.removeprefix("Skipped: ") or "skipped")
        elif report.when == "call" or report.failed:
            self.outcomes[test].append(report.outcome)

    def result(self, row: Row) -> str:
        """What is to be said of a row."""
        outcomes = [outcome for test in row.tests for outcome in self.outcomes.get(test, ["failed"])]
        passed = outcomes.count("passed")
        told = "; ".join(self.told[f"row {row.number}"])
        if "failed" in outcomes:
            return f"**NOT HELD** {told}".strip()
        skipped = sorted({outcome for outcome in outcomes if outcome != "passed"})
        if not passed:
            return f"skipped: {'; '.join(skipped)}"
        parts = [told or f"{passed} test(s) passed", *(f"in part skipped: {reason}" for reason in skipped)]
        return "; ".join(parts)


def main(arguments: list[str]) -> int:
    """The exit status: 0 when every row that can run here is held."""
    numbers = [int(word) for word in arguments]
    rows = [row for row in ROWS if not numbers or row.number in numbers]
    collector = Collector()
    tests = list(dict.fromkeys(test for row in rows for test in row.tests))
    began = time.monotonic()
    status = pytest.main(["-p", "no:cacheprovider", "-q", "-rs", *tests], plugins=[collector])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        return int(status)  # interrupted, or it could not begin: no row was judged
    results = {str(row.number): collector.result(row) for row in rows}
    for row in rows:
        print(f"{row.number:>3}  {row.what}: {results[str(row.number)]}")
    print(f"{time.monotonic() - began:.0f} s")
    if FULL:
        table.write(table.read(RESULTS) | results, RESULTS, PAGE, _machine())
    return int(any(result.startswith("**") for result in results.values()))


def _machine() -> str:
    return f"{time.strftime('%Y-%m-%d')}, Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
