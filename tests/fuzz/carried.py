"""Targets that read what lies on a disk: the archive in the executable, the manifest, the payload, a kept verdict."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import os
import struct
import tempfile
from functools import cache
from pathlib import Path

from app import carchive, manifest, payload, segments
from app.backends import findings, probe, verdict
from app.carchive import Entry
from app.directories import UnsafeDirectory, opened, remove
from app.embedded import Payload
from app.errors import ExitCode, WorkerError
from app.manifest import FileEntry, Manifest
from tests.conftest import NATIVE, OPTIONS
from tests.fuzz.target import told_to_the_user

FILES = {payload.SERVER: b"#!/bin/sh\n", "backend-assets/util/libggml-cpu-x64.so": b"\x7fELF" * 20}
MANIFEST = Manifest(
    {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data), 0o700) for name, data in FILES.items()},
    OPTIONS,
    NATIVE,
)

_PACKED, _PLAIN = b"\0", b"\1"
_VERDICT = findings.Findings(
    (findings.Library("libggml-cpu-x64.so", "ran"),),
    (findings.Device("Vulkan0", "a GPU", "Vulkan", "gpu", 8 << 30, 7 << 30),),
    findings.Vulkan(devices=(findings.Physical(0, "a GPU", "discrete", "a driver", "1.0", "1.3.0", True),)),
)


def read_archive(data: bytes) -> bool:
    """The table of the archive in the executable, which a bad disk or copy may have changed."""
    file = io.BytesIO(data)
    found: dict[str, Entry] = {}
    with told_to_the_user(ExitCode.ASSETS, ExitCode.FAILED):
        found = carchive.entries(file)
        assert all(len(entry.read(file)) == entry.length for entry in found.values())
    return bool(found)


def archive_seeds() -> list[bytes]:
    archive = archive_with()
    return [archive, b"\x7fELF" * 10 + archive + b"sections"]


def archive_with(entry_length: int = 0, length: int = 0, table_length: int = 0) -> bytes:
    """As PyInstaller writes it, with one entry; a number that is given stands in the place of the right one."""
    name, content = b"payload/manifest.json\0", b"{}"
    entry = struct.pack("!IIIIBc", entry_length or 18 + len(name), 0, len(content), len(content), 0, b"a") + name
    whole = length or len(content) + len(entry) + 88
    magic, table_length = b"MEI\014\013\012\013\016", table_length or len(entry)
    return content + entry + struct.pack("!8sIIII64s", magic, whole, len(content), table_length, 311, b"libpython")


def read_manifest(data: bytes) -> bool:
    """The payload's table of contents."""
    try:
        read = manifest.from_json(data)
    except ValueError:
        return False
    assert len(read.digest) == 64
    assert not any(path.startswith("/") or ".." in path.split("/") for path in (*read.files, *read.directories))
    assert manifest.from_json(read.to_json()) == read
    return True


def manifest_seeds() -> list[bytes]:
    return [MANIFEST.to_json()]


def read_payload(data: bytes) -> bool:
    """The archive's one segment against the manifest. The first byte says whether it is packed already."""
    segment = data[1:] if data[:1] == _PACKED else lzma.compress(data[1:], preset=0)
    base = Path(tempfile.mkdtemp(dir=_scratch()))
    taken = False
    try:
        with told_to_the_user(ExitCode.ASSETS):
            try:
                os.close(payload.ensure(Payload(MANIFEST, lambda _: segment), str(base), {}).fd)
                taken = True
            except UnsafeDirectory as error:
                raise AssertionError("the archive's fault is blamed on the directory") from error
            except WorkerError:
                assert os.listdir(base) == [".lock"], "something half-written is left"
                raise
    finally:
        with opened(os.open(_scratch(), os.O_RDONLY | os.O_DIRECTORY)) as parent:
            remove(parent, base.name)
    return taken


def payload_seeds() -> list[bytes]:
    (packed,) = segments.compress(MANIFEST, FILES.__getitem__)
    return [_PACKED + packed, _PLAIN + lzma.decompress(packed)]


def read_verdict(data: bytes) -> bool:
    """What is kept about this machine: a value, or None for anything else."""
    name = "verdict"
    (_scratch() / name).write_bytes(data)
    found = verdict.read(_scratch(), name)
    assert found is None or findings.from_json(findings.to_json(found)) == found
    return found is not None


def verdict_seeds() -> list[bytes]:
    return [findings.to_json(_VERDICT).encode(), findings.to_json(findings.Findings()).encode()]


def read_probe(data: bytes) -> bool:
    """What the probe prints, among whose lines a library that it loaded may have written."""
    events = probe._parse(data)
    vulkan = probe._vulkan(probe._Run(events, ""))
    try:
        found = probe._findings(events, {"/libggml-cpu-x64.so": "libggml-cpu-x64.so"}, probe._Trouble(), vulkan)
    except probe._UNINTELLIGIBLE:
        return False
    assert findings.from_json(findings.to_json(found)) == found
    return bool(found.devices)


def probe_seeds() -> list[bytes]:
    device = {"device": "CPU", "description": "a CPU", "type": "cpu", "backend": "CPU", "id": "", "total": 1, "free": 1}
    physical = {"physical": 0, "name": "a GPU", "type": "discrete", "driver": "a", "info": "b", "api": "1.3.0"}
    library = {"library": "/libggml-cpu-x64.so", "state": "ran", "detail": ""}
    events = [{"step": "run", "of": "CPU"}, library, device, {"tried": "CPU", "trouble": ""}, physical, {"end": True}]
    return ["\n".join(map(json.dumps, events)).encode(), b'{"vulkan": "loader", "detail": "none"}\n']


@cache
def _scratch() -> Path:
    """A directory in memory, removed at the end."""
    made = tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True)
    _KEPT.append(made)
    return Path(made.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
