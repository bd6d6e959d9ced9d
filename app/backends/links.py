"""A directory with a program and exactly the backends that it shall load: ggml loads whatever lies beside it.

The libraries are symbolic links. The program is a copy: it looks for its directory through
/proc/self/exe, which follows links, and the checked directory admits no hard ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from app.directories import open_private, opened, remove
from app.manifest import FileEntry, Manifest
from app.payload import Assets, locked, readable_errors

_MODE = 0o700


@dataclass(frozen=True)
class Links:
    """Such a directory; while `fd` is open (also in a program we exec) nobody prunes it."""

    program: Path
    """The copy of it."""
    fd: int


def ensure(assets: Assets, manifest: Manifest, file: str, wanted: Mapping[str, Path]) -> Links:
    """A directory with `file` of `assets` and a link of each name in `wanted`, made anew unless it is exactly that.

    `manifest` is that of `assets`. Raises `UnsafeDirectory` where it cannot be made.
    """
    table = {name: str(path) for name, path in wanted.items()}
    key = hashlib.sha256(json.dumps([file, sorted(table.items())]).encode()).hexdigest()[:16]
    name = f"{manifest.digest}.links-{key}"
    program, entry = assets.base / name / Path(file).name, manifest.files[file]
    with readable_errors(assets.base), opened(open_private(assets.base, create=False)) as base_fd:
        with suppress(OSError):
            return _checked(base_fd, program, table, entry)
        with locked(base_fd, assets.base):
            with suppress(OSError):
                return _checked(base_fd, program, table, entry)
            _make(base_fd, name, manifest.digest, table, assets.path / file)
        return _checked(base_fd, program, table, entry)


def _make(base_fd: int, name: str, digest: str, table: Mapping[str, str], program: Path) -> None:
    temporary = f"{digest}.tmp-{secrets.token_hex(4)}"
    os.mkdir(temporary, _MODE, dir_fd=base_fd)
    try:
        with opened(os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=base_fd)) as fd:
            for link, target in table.items():
                os.symlink(target, link, dir_fd=fd)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(program.name, flags, _MODE, dir_fd=fd), "wb") as copy:
                copy.write(program.read_bytes())
                os.fchmod(copy.fileno(), _MODE)  # whatever the umask is
        remove(base_fd, name)
        os.rename(temporary, name, src_dir_fd=base_fd, dst_dir_fd=base_fd)
    except BaseException:
        remove(base_fd, temporary)
        raise


def _checked(base_fd: int, program: Path, table: Mapping[str, str], entry: FileEntry) -> Links:
    """Raises `OSError` unless the directory is ours alone and holds the links of `table`, the program, and no more."""
    fd = os.open(program.parent.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base_fd)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _require(_is_ours(os.fstat(fd)))
        _require(set(os.listdir(fd)) == {*table, program.name})
        for name, target in table.items():
            _require(os.readlink(name, dir_fd=fd) == target)  # OSError for what is no link
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(program.name, flags, dir_fd=fd), "rb") as copy:
            status = os.fstat(copy.fileno())
            _require(stat.S_ISREG(status.st_mode) and _is_ours(status) and status.st_nlink == 1)
            _require(hashlib.file_digest(copy, "sha256").hexdigest() == entry.sha256)
    except BaseException:
        os.close(fd)
        raise
    return Links(program, fd)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == _MODE


def _require(fact: bool) -> None:
    if not fact:
        raise OSError("it is not as it was made")
