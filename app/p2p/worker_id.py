"""The number that a worker is known by, the same over restarts."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from app.directories import make_private
from app.errors import usage_error
from app.p2p.identity import ID_PATTERN

_BYTES = 16
_MACHINE_ID = Path("/etc/machine-id")

log = logging.getLogger(__name__)


class WorkerId:
    """An id; while the object lives no second process has it from the same directory."""

    def __init__(self, text: str, lock: int | None = None) -> None:
        self.text = text
        self._lock = lock

    def __del__(self) -> None:
        if self._lock is not None:
            os.close(self._lock)


def worker_id(
    given: str | None, instance: str, state_dir: str | None, port: int, environ: Mapping[str, str]
) -> WorkerId:
    """The id that the user gave, else the kept one of this instance, made on the first start.

    It is kept in `state_dir`, else in systemd's, else in XDG's state directory. Where
    nothing can be kept it is derived from machine id, instance and port. Raises a
    usage error for an unusable name, and when the instance runs already.
    """
    if not re.fullmatch(ID_PATTERN, instance):
        raise usage_error(f"--instance {instance!r} cannot be used", "1 to 48 letters, digits, - and _")
    if given is not None:
        if not re.fullmatch(ID_PATTERN, given):
            raise usage_error(f"--id {given!r} cannot be used", "1 to 48 letters, digits, - and _")
        return WorkerId(given)
    directory = _directory(state_dir, environ)
    path = directory / f"{instance}.id"
    try:
        make_private(directory)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise usage_error(
                f"the instance {instance!r} runs already", "for a second worker on this machine give --instance NAME"
            ) from None
        return WorkerId(_kept(lock), lock)
    except OSError as error:
        log.warning(
            "cannot keep the worker id in %s (%s): it follows from machine, instance and port", path, error.strerror
        )
        return WorkerId(_derived(instance, port))


def _directory(state_dir: str | None, environ: Mapping[str, str]) -> Path:
    if state_dir is not None:
        return Path(state_dir)
    if environ.get("STATE_DIRECTORY"):  # systemd.exec(5): several are separated by colons
        return Path(environ["STATE_DIRECTORY"].partition(":")[0])
    home = environ.get("HOME") or "/nonexistent"
    return Path(environ.get("XDG_STATE_HOME") or Path(home, ".local/state")) / "worker"


def _kept(file: int) -> str:
    """The id in `file`; a new one is written where there is none, or half of one."""
    kept = os.pread(file, 100, 0).decode("ascii", "replace").strip()
    if re.fullmatch(f"[0-9a-f]{{{2 * _BYTES}}}", kept):
        return kept
    fresh = secrets.token_hex(_BYTES)
    os.ftruncate(file, 0)
    os.pwrite(file, f"{fresh}\n".encode(), 0)
    os.fsync(file)
    return fresh


def _derived(instance: str, port: int) -> str:
    try:
        machine = _MACHINE_ID.read_text()
    except OSError:
        machine = os.uname().nodename
    # Hashed, as machine-id(5) asks: the number itself is to stay on the machine.
    return hashlib.sha256(f"worker id\0{machine}\0{instance}\0{port}".encode()).hexdigest()[: 2 * _BYTES]
