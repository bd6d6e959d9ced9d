"""What this file carries beside the launcher: the payload, notes of the build, licences."""

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

MANIFEST_ENTRY = "payload/manifest.json"
SEGMENT_ENTRY = "payload/segment-{}.xz"
ABOUT_ENTRY = "payload/about.json"
LICENSES_ENTRY = "payload/licenses.txt.xz"


@dataclass(frozen=True)
class Payload:
    """The table of contents, and how to read one compressed segment of the files (see `segments`)."""

    manifest: Manifest
    read_segment: Callable[[int], bytes]


def payload() -> Payload:
    """The payload of the running file. Raises `WorkerError` when it carries none, or a broken one."""
    try:
        table = manifest.from_json(_read(MANIFEST_ENTRY))
    except ValueError as error:
        raise damaged_copy(f"the carried files are broken: {error}") from error
    return Payload(table, lambda number: _read(SEGMENT_ENTRY.format(number)))


def about() -> dict[str, Any]:
    """What the build noted about the launcher itself (`worker.spec` writes it)."""
    plain: dict[str, Any] = json.loads(_read(ABOUT_ENTRY))
    return plain


def licenses() -> str:
    """The licence texts of everything carried."""
    return lzma.decompress(_read(LICENSES_ENTRY)).decode()


def _read(name: str) -> bytes:
    with Path(carchive.EXECUTABLE).open("rb") as file:
        entry = carchive.entries(file).get(name)
        if entry is None:
            raise damaged_copy(f"the carried files are broken: it holds no {name}")
        return entry.read(file)
