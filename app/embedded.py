"""What this file carries beside the launcher: files for the worker and for the head, notes of the build, licences."""

from __future__ import annotations

import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import carchive, manifest
from app.errors import damaged_copy
from app.manifest import Manifest

WORKER, HEAD = "payload", "head"
"""The two parts: entries of the archive are named `PART/...`."""
MANIFEST_ENTRY = "{}/manifest.json"
SEGMENT_ENTRY = "{}/segment-{}.xz"
LICENSES_ENTRY = "{}/licenses.txt.xz"
ABOUT_ENTRY = "payload/about.json"


@dataclass(frozen=True)
class Payload:
    """The table of contents, and how to read one compressed segment of the files (see `segments`)."""

    manifest: Manifest
    read_segment: Callable[[int], bytes]


def payload() -> Payload:
    """The worker's part of the running file. Raises `WorkerError` when it carries none, or a broken one."""
    return _part(WORKER)


def head() -> Payload | None:
    """The part for the head, llama.cpp's own programs; None where the file was built without."""
    return _part(HEAD) if _carries(HEAD) else None


def about() -> dict[str, Any]:
    """What the build noted about the launcher itself (`worker.spec` writes it)."""
    plain: dict[str, Any] = json.loads(_read(ABOUT_ENTRY))
    return plain


def licenses() -> str:
    """The licence texts of everything carried."""
    parts = [WORKER, *([HEAD] if _carries(HEAD) else [])]
    return "\n".join(lzma.decompress(_read(LICENSES_ENTRY.format(part))).decode() for part in parts)


def _part(part: str) -> Payload:
    try:
        table = manifest.from_json(_read(MANIFEST_ENTRY.format(part)))
    except ValueError as error:
        raise damaged_copy(f"the carried files are broken: {error}") from error
    return Payload(table, lambda number: _read(SEGMENT_ENTRY.format(part, number)))


def _carries(part: str) -> bool:
    with Path(carchive.EXECUTABLE).open("rb") as file:
        return MANIFEST_ENTRY.format(part) in carchive.entries(file)


def _read(name: str) -> bytes:
    with Path(carchive.EXECUTABLE).open("rb") as file:
        entry = carchive.entries(file).get(name)
        if entry is None:
            raise damaged_copy(f"the carried files are broken: it holds no {name}")
        return entry.read(file)
