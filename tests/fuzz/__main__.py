"""The long run: `python -m tests.fuzz [MINUTES] [TARGET ...]`.

The targets share the time. What leads to new code is kept below `build/fuzz/TARGET/corpus`, so that the next run
goes on from there; an input that breaks a target is saved beside it, and belongs in `targets.FOUND` with the fix.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.targets import FOUND, TARGETS

WORK = Path("build/fuzz")
MINUTES = 10.0
HANG = 25
"""Seconds for one input, after which libFuzzer takes it for a hang: more than any limit in the targets."""
MEMORY = 2048
"""MiB, after which libFuzzer takes it for a leak."""
START = 60.0
"""Seconds, besides its share, that a target has to import and to run its corpus."""
_SHOWN = 30
"""Lines of what broke a target."""


@dataclass(frozen=True)
class Result:
    """What came of one target."""

    executions: int
    seconds: float
    corpus: int
    finding: Path | None
    log: Path


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("minutes", nargs="?", type=float, default=MINUTES)
    parser.add_argument("target", nargs="*", help=f"of {', '.join(TARGETS)} (default: all)")
    arguments = parser.parse_args()
    names = arguments.target or list(TARGETS)
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    if importlib.util.find_spec("atheris") is None:
        sys.exit("error: atheris is not installed\nhint: start this with python3 build.py fuzz, on x86-64")
    results = {}
    print(f"{'target':<16}{'executions':>12}{'seconds':>9}{'corpus':>8}  finding", flush=True)
    for name in names:
        result = results[name] = search(name, arguments.minutes * 60 / len(names))
        print(
            f"{name:<16}{result.executions:>12,}{result.seconds:>9.0f}{result.corpus:>8}  {result.finding or 'none'}",
            flush=True,
        )
    broken = [result for result in results.values() if result.finding]
    total = sum(result.executions for result in results.values())
    print(f"{total:,} executions, {len(broken)} findings")
    for result in broken:
        print(f"\n{result.log}:", *_trouble(result.log), sep="\n  ")
    return 1 if broken else 0


def search(name: str, seconds: float) -> Result:
    """Let atheris search `name` for about so long; it ends at the first finding."""
    work = WORK / name
    corpus = work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for data in (*TARGETS[name].seeds(), *FOUND.get(name, ())):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    log = work / "log"
    known = set(work.glob("*-*"))
    started = time.monotonic()
    with log.open("wb") as file:
        command = [sys.executable, "-m", "tests.fuzz.child", name, f"-max_total_time={max(1, round(seconds))}"]
        command += [f"-timeout={HANG}", f"-rss_limit_mb={MEMORY}", "-print_final_stats=1", "-verbosity=1"]
        command += [f"-artifact_prefix={work}/", str(corpus)]
        try:
            status = subprocess.run(
                command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, timeout=seconds + START, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            status = -1
    text = log.read_text(errors="replace")
    counted = re.findall(r"number_of_executed_units:\s*(\d+)", text) or re.findall(r"^#(\d+)\s", text, re.MULTILINE)
    new = sorted(set(work.glob("*-*")) - known)
    finding = new[0] if new else log if status != 0 else None
    executions = int(counted[-1]) if counted else 0
    return Result(executions, time.monotonic() - started, len(list(corpus.iterdir())), finding, log)


def _trouble(log: Path) -> list[str]:
    """The traceback in a log; its last lines where there is none."""
    whole = log.read_text(errors="replace")
    _, found, behind = whole.partition("Uncaught Python exception")
    lines = behind.partition("ERROR: libFuzzer")[0].splitlines() if found else whole.splitlines()
    return lines[-_SHOWN:]


if __name__ == "__main__":
    sys.exit(main())
