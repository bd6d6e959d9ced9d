"""Starts programs and asks the kernel what they cost: processor time, memory, threads."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.p2p.procnet import IPV4, listeners

START_LIMIT = 120.0
"""Seconds that a program has to be ready: a guard against hanging."""
STOP_LIMIT = 10.0
"""Seconds that it has to end; relays let a connection finish for some of them."""
_POLL = 0.01
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """Something cannot be measured here; the message tells the user why."""


def given(name: str) -> Path:
    """The file or directory that `build.py bench` passes in the variable `name`."""
    value = os.environ.get(name)
    if not value:
        raise BenchError(f"{name} is not set: start this with python3 build.py bench")
    return Path(value)


@dataclass(frozen=True)
class Program:
    """A started program and where it writes."""

    process: subprocess.Popen[bytes]
    out: Path
    err: Path


@dataclass(frozen=True)
class Usage:
    """What some programs have used since their start, all their processes together."""

    cpu: float
    """Seconds, user and system."""
    memory: float
    """MB resident now."""
    peak: float
    """MB: the sum of each process's own highest, which need not fall into one moment."""
    threads: int


@contextmanager
def program(
    command: Sequence[str | Path], scratch: Path, name: str, env: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """`command` running; what it prints goes to `name`.out and .err below `scratch`. It and its children are ended."""
    out, err = scratch / f"{name}.out", scratch / f"{name}.err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, env=env, start_new_session=True
        )
    try:
        yield Program(process, out, err)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for_text(running: Program, path: Path, pattern: str) -> re.Match[str]:
    """The first match of `pattern` in what `running` has written to `path`."""
    for _ in _waiting(running, pattern):
        if match := re.search(pattern, path.read_text(errors="replace")):
            return match
    raise AssertionError("not reached")


def wait_for_port(running: Program, port: int) -> None:
    """Until somebody listens on `port`: looked up, not dialled, since a relay would dial its server for us."""
    for _ in _waiting(running, f"port {port}"):
        if listeners(port, IPV4):
            return


def _waiting(running: Program, what: str) -> Iterator[None]:
    deadline = time.monotonic() + START_LIMIT
    while running.process.poll() is None and time.monotonic() < deadline:
        yield
        time.sleep(_POLL)
    said = (running.err.read_text(errors="replace") + running.out.read_text(errors="replace")).strip()
    last = said.splitlines()[-1] if said else "nothing"
    raise BenchError(f"{running.process.args!r}: no {what}; its last word: {last}")


def usage(*pids: int) -> Usage:
    """Of these processes and all that they have started. Children that have ended count for their time."""
    parts = [_usage(one) for pid in pids for one in _tree(pid)]
    return Usage(
        sum(part.cpu for part in parts),
        sum(part.memory for part in parts),
        sum(part.peak for part in parts),
        sum(part.threads for part in parts),
    )


def _tree(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            with suppress(OSError):  # that thread has ended
                found += map(int, task.read_text().split())
    return found


def _usage(pid: int) -> Usage:
    try:
        # proc(5): after the name in brackets, from the state on; 11-14 are utime, stime, cutime, cstime.
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = dict(re.findall(r"(\w+):\s+(\d+)", Path(f"/proc/{pid}/status").read_text()))
    except OSError:  # it has just ended
        return Usage(0.0, 0.0, 0.0, 0)
    cpu = sum(map(int, stat[11:15])) / _TICKS
    kib = 1024 / 1e6
    return Usage(
        cpu, int(status.get("VmRSS", 0)) * kib, int(status.get("VmHWM", 0)) * kib, int(status.get("Threads", 1))
    )
