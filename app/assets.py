"""The `assets` command: where the carried files are unpacked, whether they are whole, and what can go."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Set
from pathlib import Path

from app import embedded, onefile
from app.directories import open_private, opened, remove
from app.errors import ExitCode, WorkerError
from app.manifest import Manifest
from app.options import AssetsOptions
from app.payload import base_directories, locked, readable_errors, verified
from app.verify import Damaged

_PAYLOAD_NAME = re.compile(r"[0-9a-f]{64}(\.tmp-[0-9a-f]{8}|\.damaged|\.(verdict|links)-[0-9a-f]{16})?")


def run(options: AssetsOptions, extra: list[str] | None) -> int:  # noqa: ARG001 - every command has it
    """`worker assets path|verify|prune`"""
    payload, head = embedded.payload(), embedded.head()
    bases = base_directories(options.backend_assets_path, os.environ)
    digest = payload.manifest.digest
    found = [base for base in bases if (base / digest).is_dir()]
    if options.action == "path":
        print((found or bases)[0] / digest)
    elif options.action == "verify":
        if not found:
            raise WorkerError(f"nothing is unpacked in {bases[0]}", "a start unpacks it", ExitCode.ASSETS)
        _verify(found[0], payload.manifest)
        if head is not None and (found[0] / head.manifest.digest).is_dir():
            _verify(found[0], head.manifest)
    else:
        for base in bases:
            if base.is_dir():
                for name in _prune(base, {digest, head.manifest.digest} if head else {digest}):
                    print(f"removed {base / name}")
        for path in onefile.prune():
            print(f"removed {path}")
    return ExitCode.OK


def _verify(base: Path, wanted: Manifest) -> None:
    directory = base / wanted.digest
    try:
        os.close(verified(base, wanted).fd)
    except Damaged as damage:
        raise WorkerError(
            f"{directory}: {damage}", "it is never run: the next start unpacks it anew", ExitCode.ASSETS
        ) from None
    print(f"{directory}: {len(wanted.files)} files, all as they were built")


def _prune(base: Path, keep: Set[str]) -> list[str]:
    """Remove every part but those of `keep` that no process uses, with what was kept of each; the names of what went.

    Of `keep` the verdicts stay, the directories of links go unless a program runs there.
    """
    removed = []
    with readable_errors(base), opened(open_private(base, create=False)) as base_fd, locked(base_fd, base):
        for name in sorted(os.listdir(base_fd)):
            digest, _, rest = name.partition(".")
            kept = digest in keep and (not rest or rest.startswith("verdict-"))
            if _PAYLOAD_NAME.fullmatch(name) and not kept and _remove_unused(base_fd, name):
                removed.append(name)
    return removed


def _remove_unused(base_fd: int, name: str) -> bool:
    """Remove `name` unless a running server holds its lock."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base_fd)
    except OSError:
        return remove(base_fd, name)
    with opened(fd):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return remove(base_fd, name)
