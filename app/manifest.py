"""What the payload holds: every file with its hash, and what the build read from the server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FileEntry:
    """One unpacked file: SHA-256 in hex, size in bytes, permission bits."""

    sha256: str
    size: int
    mode: int


@dataclass(frozen=True)
class ServerOption:
    """One option of rpc-server: its spellings, and the name of its value ("" when it takes none)."""

    flags: tuple[str, ...]
    value: str


@dataclass(frozen=True)
class Native:
    """What was compiled."""

    llama_cpp: str
    """Version of llama.cpp, as its build says it."""
    commit: str
    rpc_protocol: str
    """`major.minor.patch` of the RPC protocol."""
    target: str
    """Machine, such as `x86_64`."""
    backends: tuple[str, ...]
    cpu_variants: tuple[str, ...]
    glibc: str
    """The oldest glibc that the files run with."""
    compiler: str
    libc_bundled: bool
    gpu: str
    """What the GPU backend was compiled with, or why there is none; "" when none was asked for."""
    cpu_variants_run: tuple[str, ...]
    """Those that computed rightly on the building machine; it could not run the others."""


@dataclass(frozen=True)
class Manifest:
    """The table of contents of a payload. Paths are relative and use `/`."""

    files: Mapping[str, FileEntry]
    server_options: tuple[ServerOption, ...]
    native: Native

    @property
    def digest(self) -> str:
        """SHA-256 (64 hex digits) of the table of files: the name of the directory they are unpacked to."""
        table = sorted((path, entry.sha256, entry.size, entry.mode) for path, entry in self.files.items())
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()

    @property
    def directories(self) -> frozenset[str]:
        """Every directory that the files need, without the top one."""
        found: set[str] = set()
        for path in self.files:
            parts = path.split("/")[:-1]
            found.update("/".join(parts[: end + 1]) for end in range(len(parts)))
        return frozenset(found)

    def to_json(self) -> bytes:
        """The form in which it is carried."""
        return json.dumps(
            {
                "files": {path: [entry.sha256, entry.size, entry.mode] for path, entry in self.files.items()},
                "server_options": [[list(option.flags), option.value] for option in self.server_options],
                "native": vars(self.native),
            },
            indent=1,
        ).encode()


def from_json(data: bytes) -> Manifest:
    """The inverse of `Manifest.to_json`. Raises `ValueError` for anything else, also a path that leads outside."""
    try:
        plain = json.loads(data)
        files = {path: _entry(path, *values) for path, values in plain["files"].items()}
        native: dict[str, Any] = plain["native"]
        for name in ("backends", "cpu_variants", "cpu_variants_run"):
            native[name] = tuple(native[name])
        options = tuple(ServerOption(tuple(flags), value) for flags, value in plain["server_options"])
        return Manifest(files, options, Native(**native))
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"no manifest: {error}") from error


def _entry(path: str, sha256: str, size: int, mode: int) -> FileEntry:
    if not path.isprintable() or not all(part not in ("", ".", "..") for part in path.split("/")):
        raise ValueError(f"unsafe path in the manifest: {path!r}")
    if type(sha256) is not str or type(size) is not int or type(mode) is not int or size < 0 or mode & ~0o777:
        raise ValueError(f"no hash, size and mode: {path!r}")
    return FileEntry(sha256, size, mode)
