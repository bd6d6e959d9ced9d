"""Goal: Ctrl-C, which a onefile program gets twice, stops once and in order; a user who insists is heard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import signal, sys, time
from app.p2p import interrupts
interrupts.SAME = float(sys.argv[1])
interrupts.on_interrupt(lambda: print("stop", flush=True))
print("ready", flush=True)
sys.stdin.read()
print("ended in order", flush=True)
"""


def start(same: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(same)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_at_once_is_once(number: int) -> None:
    with start(same=60) as process:
        for _ in range(3):
            os.kill(process.pid, number)
        out, _ = process.communicate(timeout=30)
    assert out == "stop\nended in order\n"
    assert process.returncode == 0


def test_who_insists_ends_it_at_once() -> None:
    with start(same=0) as process:
        assert process.stdout is not None
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "stop\n"
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
        assert process.stdin is not None
        process.stdin.close()
