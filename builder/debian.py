"""Archives of Debian's pool: pinned by hash and fetched from the mirror that this machine already uses."""

from __future__ import annotations

import hashlib
import lzma
import platform
import shutil
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from builder.paths import REQUIREMENTS
from builder.steps import safe_members, say

LOCK = REQUIREMENTS / "debian.txt"
_FETCH_LIMIT = 60.0
"""Seconds without a byte after which a mirror counts as out of reach."""
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
"""Bytes of a member's header in deb(5): name 16, time 12, owner 6, group 6, mode 8, size 10, end 2."""


class Unavailable(Exception):
    """An archive cannot be had here; the text says why and what would help."""


@dataclass(frozen=True)
class Archive:
    """One line of the lock."""

    path: str
    """Below a mirror's address."""
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.rpartition("/")[2]


def pinned() -> list[Archive]:
    """The archives that this machine builds with."""
    lines = (line.split() for line in LOCK.read_text().splitlines() if line and not line.startswith("#"))
    return [Archive(path, sha256) for machine, path, sha256 in lines if machine in ("any", platform.machine())]


def fetch(directory: Path, mirror: str | None, *, offline: bool = False) -> None:
    """Make `directory` hold every pinned archive. Raises `Unavailable`."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [archive for archive in pinned() if not _is_whole(directory / archive.name, archive.sha256)]
    if missing and offline:
        raise Unavailable(f"{directory} holds no {missing[0].name}; `python3 build.py fetch DIR` fills a directory")
    if missing:
        say(f"fetching {len(missing)} archives for Vulkan ...")
        mirrors = [mirror] if mirror else _mirrors()
        for archive in missing:
            _fetch_one(archive, directory / archive.name, mirrors)


def unpack_deb(archive: Path, target: Path) -> None:
    """Unpack the files of a Debian package into `target`."""
    for name, data in _ar_members(archive.read_bytes()):
        if name == "data.tar.xz":
            with safe_members(tarfile.open(fileobj=BytesIO(lzma.decompress(data)))) as tar:
                tar.extractall(target)  # noqa: S202 - safe_members refuses what leaves it
            return
    raise ValueError(f"{archive} holds no data.tar.xz")


def _mirrors() -> list[str]:
    if shutil.which("apt-get") is None:
        raise Unavailable("this machine knows no Debian mirror; name one with --debian-mirror URL")
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return sorted(set(listed), key=len)  # the archive itself before its -security and -updates


def _fetch_one(archive: Archive, target: Path, mirrors: list[str]) -> None:
    reason = "no mirror is configured"
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(f"{mirror.rstrip('/')}/{archive.path}", timeout=_FETCH_LIMIT) as answer:  # noqa: S310 - checked by hash
                data = answer.read()
        except (OSError, ValueError) as error:
            reason = f"{mirror}: {getattr(error, 'reason', error)}"
            continue
        if hashlib.sha256(data).hexdigest() == archive.sha256:
            partial = target.with_suffix(".part")
            partial.write_bytes(data)
            partial.replace(target)
            return
        reason = f"{mirror} has another file of that name"
    raise Unavailable(f"cannot fetch {archive.name} ({reason}); name a Debian mirror with --debian-mirror URL")


def _is_whole(file: Path, sha256: str) -> bool:
    return file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256


def _ar_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    if not data.startswith(_AR_MAGIC):
        raise ValueError("not a Debian package")
    at = len(_AR_MAGIC)
    while at + _AR_HEADER <= len(data):
        header = data[at : at + _AR_HEADER]
        size = int(header[48:58])
        at += _AR_HEADER
        yield header[:16].decode().strip().rstrip("/"), data[at : at + size]
        at += size + size % 2
