"""The command line in a process of its own, as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO

from tests.p2p.fake_worker import HANG, eventually

TOKEN_VARIABLES = ("LOCALAI_TOKEN", "LOCALAI_P2P_TOKEN", "TOKEN", "WORKER_PEERS")


class Program:
    """A running `worker ...`, and what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.out: list[str] = []
        self.err: list[str] = []
        self._readers = [
            threading.Thread(target=_read, args=(stream, lines), daemon=True)
            for stream, lines in ((process.stdout, self.out), (process.stderr, self.err))
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    def wait(self) -> int:
        """Its exit status, after all that it said has been read."""
        status = self.process.wait(HANG)
        for reader in self._readers:
            reader.join(HANG)
        return status

    def says(self, text: str, times: int = 1) -> None:
        """Wait until stderr has `text` in so many lines."""
        eventually(lambda: sum(text in line for line in self.err) >= times or self._fail(text))

    def line(self, number: int = 0) -> str:
        """Wait for that line of stdout."""
        eventually(lambda: len(self.out) > number or self._fail("a line"))
        return self.out[number]

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def _fail(self, text: str) -> bool:
        assert self.process.poll() is None, f"it ended without {text!r}: {self.out} {self.err}"
        return False


def _read(stream: IO[str], lines: list[str]) -> None:
    with suppress(ValueError, OSError):
        for line in stream:
            lines.append(line.rstrip("\n"))


def environment(token: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Ours, with that token and no other."""
    env = {name: value for name, value in os.environ.items() if name not in TOKEN_VARIABLES}
    return {**env, "LOCALAI_TOKEN": token, **(extra or {})}


def command_line(*arguments: object, entry: str = "app") -> list[str]:
    return [sys.executable, "-W", "error", "-m", entry, *map(str, arguments)]


@contextmanager
def running(
    token: str, *arguments: object, env: Mapping[str, str] | None = None, entry: str = "app", **options: object
) -> Iterator[Program]:
    """Start it; at the end it is gone. `entry`: the module that is run."""
    with subprocess.Popen(  # type: ignore[call-overload]
        command_line(*arguments, entry=entry),
        env=environment(token, env),
        text=True,
        **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    ) as process:
        try:
            yield Program(process)
        finally:
            if process.poll() is None:
                process.kill()


def run(
    token: str, *arguments: object, env: Mapping[str, str] | None = None, entry: str = "app"
) -> tuple[int, list[str], list[str]]:
    """Exit status, stdout and stderr of one that ends by itself."""
    with running(token, *arguments, env=env, entry=entry) as program:
        return program.wait(), program.out, program.err
