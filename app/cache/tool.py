"""Runs the carried `worker-cache` (native/cache.cpp), which reads GGUF files and hashes as fast as the machine can."""

from __future__ import annotations

import json
import logging
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from app import launch, payload
from app.console import printable
from app.directories import opened
from app.embedded import Payload
from app.errors import WorkerError
from app.payload import CACHE_TOOL, Assets

LARGEST = 64 << 30
"""Bytes of the largest file that is read to check it; the largest tensor known, all experts of a layer, has 12 GB."""
VERIFY_LIMIT = 240.0
"""Seconds for files in doubt: 50 GB from a disk of 210 MB/s. What is not checked by then has to be sent again."""

log = logging.getLogger(__name__)


class Tensor(NamedTuple):
    """One that a head asks for by its hash (16 hex digits). `added`: it was not there before."""

    name: str
    bytes: int
    hash: str
    added: bool


class Added(NamedTuple):
    """Bytes of the models, and what has become of their large tensors."""

    bytes: int
    small: int
    """Bytes in tensors that are too small to be cached."""
    tensors: tuple[Tensor, ...]


class Checked(NamedTuple):
    """A file of the cache, and whether its name is the hash of its content."""

    name: str
    bytes: int
    whole: bool


def add(
    assets: Assets,
    directory: Path,
    models: Sequence[Path],
    max_size: int,
    room: int,
    environ: Mapping[str, str],
    progress: Callable[[int, int], None],
) -> Added:
    """Fill `directory` with the tensors of `models`. `max_size`: bytes that they may have; `room`: that may be written.

    `progress` is told how many bytes are done, of how many. Raises `WorkerError`.
    """
    sizes, tensors, done = (0, 0), [], 0
    for event in _run(assets, ["add", str(directory), str(max_size), str(room), *map(str, models)], environ):
        if "tensor" in event:
            tensors.append(Tensor(event["tensor"], event["bytes"], event["hash"], event["state"] == "added"))
            done += event["bytes"]
            progress(done, sizes[0])
        elif "small" in event:
            sizes = (event["bytes"], event["small"])
    return Added(*sizes, tuple(tensors))


def verify(
    assets: Assets, directory: Path, names: Iterable[str], environ: Mapping[str, str], limit: float | None = None
) -> Iterator[Checked]:
    """Each file of `names` that is still there, as it is checked. Raises `WorkerError`, also after `limit` seconds."""
    for event in _run(assets, ["verify", str(directory), str(LARGEST)], environ, "\n".join(names), limit):
        if event.get("state") in ("whole", "wrong"):
            yield Checked(event["file"], event["bytes"], event["state"] == "whole")


def whole(
    carried: Payload, assets_path: str | None, environ: Mapping[str, str], directory: Path, names: Iterable[str]
) -> set[str]:
    """Those of `names` whose content is what they say; when not all can be checked, those that were. Raises nothing."""
    found: set[str] = set()
    try:
        assets = payload.ensure(carried, assets_path, environ)
        with opened(assets.fd):
            for checked in verify(assets, directory, names, environ, VERIFY_LIMIT):
                if checked.whole:
                    found.add(checked.name)
    except WorkerError as error:
        log.warning("not all of %s could be checked: %s", directory, error)
    return found


def _run(
    assets: Assets, words: list[str], environ: Mapping[str, str], text: str = "", limit: float | None = None
) -> Iterator[dict[str, Any]]:
    """What it says, line by line. Raises `WorkerError` unless it comes to its end."""
    command = launch.server_command(assets, words, environ, program=assets.path / CACHE_TOOL)
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as complaints:
        given.write(text.encode())
        given.seek(0)
        try:
            process = subprocess.Popen(
                command.argv, env=command.env, cwd=command.cwd, stdin=given, stdout=subprocess.PIPE, stderr=complaints
            )
        except OSError as error:
            raise WorkerError(f"cannot start worker-cache: {(error.strerror or str(error)).lower()}") from None
        assert process.stdout is not None
        late = threading.Timer(limit, process.kill) if limit else None
        began = time.monotonic()
        if late is not None:
            late.daemon = True
            late.start()
        event: dict[str, Any] = {}
        reading = ""
        try:
            for line in process.stdout:
                event = _parse(line)
                reading = event.get("reading", reading)
                yield event
            status = process.wait()
        finally:  # also when nobody wants the rest
            if late is not None:
                late.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        complaints.seek(0)
        for line in complaints:
            log.debug("worker-cache: %s", printable(line.decode(errors="replace").rstrip()))
    if "error" in event:
        raise WorkerError(event["error"], event["hint"])
    if "end" not in event and limit is not None and time.monotonic() - began >= limit:
        raise WorkerError(f"it took longer than {limit:g} s")
    if "end" not in event:
        what = f" while it read {reading}" if reading else ""
        raise WorkerError(
            f"worker-cache {launch.tell_status(status)}{what}",
            "the file may be damaged: compare it with its source" if reading else "--log-level debug may tell more",
        )


def _parse(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):  # the last line of one that died
        return {}
    return event if isinstance(event, dict) else {}
