"""What several tests share: a small payload made on the spot, and directories as a user would have them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import segments
from app.embedded import Payload
from app.manifest import FileEntry, Manifest, Native, ServerOption

OPTIONS = (
    ServerOption(("-h", "--help"), ""),
    ServerOption(("-t", "--threads"), "N"),
    ServerOption(("-d", "--device"), "<dev1,dev2,...>"),
    ServerOption(("-H", "--host"), "HOST"),
    ServerOption(("-p", "--port"), "PORT"),
    ServerOption(("-c", "--cache"), ""),
)
NATIVE = Native(
    "0.5.0", "0c1e57098", "7.0.0", "x86_64", ("CPU", "RPC"), ("x64", "haswell"), "2.27", "zig", False, "", ("x64",)
)

nobody = 65534
"""A user id that is neither ours nor root's."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it makes files of another user")

MakePayload = Callable[..., Payload]


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """A command that is run in this process sends the log to a stream that is closed after its test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.addLevelName(logging.WARNING, "WARNING")


@pytest.fixture
def make_payload() -> MakePayload:
    """A payload of the given files; by default a server that is a script, and one library."""

    def make(files: dict[str, bytes] | None = None) -> Payload:
        files = files or {
            "backend-assets/util/llama-cpp-rpc-server": b"#!/bin/sh\nexec env\n",
            "backend-assets/util/libggml-cpu-x64.so": b"\x7fELF and nothing more" * 100,
        }
        table = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data), 0o700) for name, data in files.items()}
        manifest = Manifest(table, OPTIONS, NATIVE)
        packed = list(segments.compress(manifest, files.__getitem__))
        return Payload(manifest, packed.__getitem__)

    return make


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """Where to unpack: a path whose every part is ours or root's."""
    yield Path(os.path.realpath(tmp_path)) / "assets"
