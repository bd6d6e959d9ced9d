"""Goal: signals arrive as events, Ctrl-C once, and none becomes a traceback."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.p2p.fake_worker import HANG

LISTEN = """
import signal, sys, threading, time
from app.p2p import signals
if "ignore" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
signals.block()
signals.listen(lambda arrived: print(arrived.number.name, arrived.by_terminal, flush=True))
print("listening", flush=True)
time.sleep(600)
"""


@contextmanager
def listening(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", LISTEN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert line(process) == "listening"
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip()


def test_each_signal_is_told_and_not_taken_for_the_terminals() -> None:
    with listening() as process:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            process.send_signal(number)
            assert line(process) == f"{number.name} False"


def test_interrupts_in_quick_succession_are_one() -> None:
    with listening() as process:
        for _ in range(3):
            process.send_signal(signal.SIGINT)
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert [line(process), line(process)] == ["SIGINT False", "SIGTERM False"]
        time.sleep(1)  # now it is meant
        process.send_signal(signal.SIGINT)
        assert line(process) == "SIGINT False"


def test_what_the_user_has_us_ignore_stays_ignored() -> None:
    with listening("ignore") as process:
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert line(process) == "SIGTERM False"


def test_a_late_one_is_no_traceback() -> None:
    """Between the end of the work and the end of the process."""
    late = "from app.p2p import signals; import os, signal; signals.block(); os.kill(os.getpid(), signal.SIGINT)"
    done = subprocess.run([sys.executable, "-c", late], capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stderr) == (0, "")
