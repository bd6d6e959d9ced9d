"""Goal: a program's time, memory and threads are those of all its processes, and it is gone afterwards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.processes import BenchError, program, usage, wait_for_text
from tests.live.support import wait_until_gone

# The parent does little, its child computes and holds 50 MB.
_FAMILY = """
import subprocess, sys
subprocess.run([sys.executable, "-c", '''
import os, time
held = bytearray(50_000_000)
while time.process_time() < 0.3: pass
print(os.getpid(), "there", flush=True)
time.sleep(60)
'''])
"""


def test_children_count(tmp_path: Path) -> None:
    with program([sys.executable, "-c", _FAMILY], tmp_path, "family") as running:
        child = int(wait_for_text(running, running.out, r"(\d+) there")[1])
        seen = usage(running.process.pid)
    assert seen.cpu >= 0.3
    assert seen.memory > 50
    assert seen.peak >= seen.memory
    assert seen.threads == 2
    assert wait_until_gone(child)


def test_a_program_that_ends_too_early_is_quoted(tmp_path: Path) -> None:
    with (
        program(["sh", "-c", "echo this went wrong >&2"], tmp_path, "short") as running,
        pytest.raises(BenchError, match="this went wrong"),
    ):
        wait_for_text(running, running.out, "never")
