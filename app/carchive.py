"""Reads entries of the archive that PyInstaller put into this executable, in place.

The bootloader unpacks only entries that it knows what to do with. Ours have the
type `a` (spec: `'PKG'`), which it leaves alone: they cost nothing at a start.
The layout is the one of PyInstaller 6 (`PyInstaller/archive/writers.py`).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from app.errors import WorkerError, damaged_copy

EXECUTABLE = "/proc/self/exe"
"""Not `sys.executable`: after an upgrade that path is another file than the one that runs."""

_MAGIC = b"MEI\014\013\012\013\016"
_COOKIE = struct.Struct("!8sIIII64s")  # magic, archive length, table offset, table length, Python, libpython
_ENTRY = struct.Struct("!IIIIBc")  # entry length, data offset, data length, full length, compressed, type
_TAIL = 64 * 1024
"""The cookie ends the archive; behind it come at most the section headers of an ELF file."""


@dataclass(frozen=True)
class Entry:
    """Where the bytes of one archive entry lie in the file."""

    offset: int
    length: int

    def read(self, file: BinaryIO) -> bytes:
        """The entry's bytes, as they were stored."""
        file.seek(self.offset)
        return file.read(self.length)


def entries(file: BinaryIO) -> dict[str, Entry]:
    """The uncompressed entries of type `a` in `file`, by name. Raises `WorkerError` without a whole archive."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    tail = file.read()
    at = tail.rfind(_MAGIC)
    if at < 0 or len(tail) - at < _COOKIE.size:
        raise WorkerError("this program carries no rpc-server", "start the packaged file: python3 build.py makes it")
    _, length, table_offset, table_length, _, _ = _COOKIE.unpack_from(tail, at)
    start = size - len(tail) + at + _COOKIE.size - length
    try:
        if start < 0:
            raise ValueError("it is longer than the file")
        file.seek(start + table_offset)
        return dict(_read_table(file.read(min(table_length, length)), start, length))
    except (ValueError, struct.error) as error:
        raise damaged_copy(f"the archive in this program is broken: {error}") from error


def _read_table(table: bytes, start: int, length: int) -> Iterator[tuple[str, Entry]]:
    """Of an archive of `length` bytes that begins at `start` in the file."""
    position = 0
    while position < len(table):
        entry_length, offset, data_length, _, compressed, kind = _ENTRY.unpack_from(table, position)
        if entry_length < _ENTRY.size or offset + data_length > length:
            raise ValueError("an entry leads nowhere")
        if kind == b"a" and not compressed:
            name = table[position + _ENTRY.size : position + entry_length].rstrip(b"\0").decode()
            yield name, Entry(start + offset, data_length)
        position += entry_length
