"""Steps that are skipped when nothing changed, and commands with a log, progress and a readable failure."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from builder.paths import LOGS, ROOT, STAMPS

_SHOWN_OF_A_FAILED_LOG = 25
"""Lines: enough for the compiler's complaint, few enough to be read."""
_QUIET_REPORT = 30.0
"""Seconds between signs of life where stdout is no terminal."""


def say(text: str) -> None:
    """One line for the person who waits."""
    print(text, flush=True)


def fail(message: str, hint: str = "") -> NoReturn:
    """End the build with one clear error and its remedy."""
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    sys.exit(1)


def digest(*parts: object, files: Iterable[Path] = ()) -> str:
    """SHA-256 over `parts` and over the names and contents of `files`."""
    whole = hashlib.sha256(repr(parts).encode())
    for file in sorted(files):
        whole.update(f"{file.relative_to(ROOT) if file.is_relative_to(ROOT) else file}\0".encode())
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()


def safe_members(tar: tarfile.TarFile) -> tarfile.TarFile:
    """`tar`, set to refuse members that leave the target; Python before 3.11.4 has no such setting."""
    tar.extraction_filter = getattr(tarfile, "data_filter", lambda member, _: member)
    return tar


def once(name: str, key: str, products: Sequence[Path], make: Callable[[], None]) -> bool:
    """Run `make` unless it ran to its end for the same `key` and its `products` exist; whether it ran.

    The stamp goes before and comes after: an interrupted step starts over.
    """
    stamp = STAMPS / name
    if stamp.exists() and stamp.read_text() == key and all(product.exists() for product in products):
        return False
    stamp.unlink(missing_ok=True)
    make()
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    return True


def run(
    what: str,
    command: Sequence[object],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    hint: str | Callable[[str], str] = "",
) -> None:
    """Run `command`, its output in a log of its own; end the build if it fails.

    `what` is shown while it runs. `hint` tells the remedy; it may look at the log's text.
    """
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / ("".join(char if char.isalnum() else "-" for char in what.lower()).strip("-") + ".log")
    started = time.monotonic()
    progress = _Progress(what)
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=cwd,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        except OSError as error:
            fail(f"cannot start {command[0]}: {error.strerror}")
        with process:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                progress.show(line)
        status = process.returncode
    progress.end()
    if status != 0:
        text = log.read_text(errors="replace")
        last = deque(text.splitlines(), _SHOWN_OF_A_FAILED_LOG)
        print("\n".join(f"  | {line}" for line in last), file=sys.stderr)
        remedy = hint(text) if callable(hint) else hint
        fail(f"{what} failed with status {status}; the whole log: {log}", remedy)
    say(f"{what}: done in {time.monotonic() - started:.0f} s")


class _Progress:
    """The last line of the output on a terminal; elsewhere a sign of life now and then."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._terminal = sys.stdout.isatty()
        self._shown = time.monotonic()
        if not self._terminal:
            say(f"{what} ...")

    def show(self, line: str) -> None:
        text = f"{self._what}: {line.strip()}"
        if self._terminal:
            width = os.get_terminal_size().columns if sys.stdout.isatty() else 80
            print(f"\r\033[K{text[: width - 1]}", end="", flush=True)
        elif time.monotonic() - self._shown > _QUIET_REPORT:
            self._shown = time.monotonic()
            say(f"  {text[:150]}")

    def end(self) -> None:
        if self._terminal:
            print("\r\033[K", end="", flush=True)
