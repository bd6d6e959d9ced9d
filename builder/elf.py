"""Reads what the dynamic loader reads of an ELF file (64 bit, little endian): needs, versions, run path.

binutils would tell the same, but a machine that builds need not have it.
Layout: System V ABI, chapter 5, and the LSB for symbol versions.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 1, 5, 15, 29
_DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True)
class _Dynamic:
    offset: int
    """Where the entry's tag lies in the file."""
    tag: int
    value: int


class Elf:
    """One file, read whole. Raises `ValueError` when it is no 64-bit little-endian ELF file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = path.read_bytes()
        if self._data[:6] != b"\x7fELF\x02\x01":
            raise ValueError(f"{path} is not a 64-bit little-endian ELF file")
        (start,) = struct.unpack_from("<Q", self._data, 32)
        size, count = struct.unpack_from("<HH", self._data, 54)
        headers = [struct.unpack_from("<IIQQQQ", self._data, start + index * size) for index in range(count)]
        self._loads = [(address, offset, length) for kind, _, offset, address, _, length in headers if kind == _PT_LOAD]
        found = [(offset, length) for kind, _, offset, _, _, length in headers if kind == _PT_DYNAMIC]
        self._dynamic = list(self._read_dynamic(*found[0])) if found else []

    @property
    def needed(self) -> list[str]:
        """The libraries that it links to (DT_NEEDED)."""
        return [self._string(entry.value) for entry in self._dynamic if entry.tag == _DT_NEEDED]

    @property
    def runpath(self) -> str | None:
        """DT_RUNPATH, which the loader reads after LD_LIBRARY_PATH."""
        return next((self._string(entry.value) for entry in self._dynamic if entry.tag == _DT_RUNPATH), None)

    @property
    def rpath(self) -> str | None:
        """DT_RPATH, which the loader reads before LD_LIBRARY_PATH."""
        return next((self._string(entry.value) for entry in self._dynamic if entry.tag == _DT_RPATH), None)

    @property
    def glibc(self) -> tuple[int, ...]:
        """The newest GLIBC_x.y that it needs, such as (2, 27); () when it needs none."""
        versions = (re.fullmatch(r"GLIBC_(\d+(?:\.\d+)+)", name) for name in self._version_names())
        return max((tuple(map(int, match[1].split("."))) for match in versions if match), default=())

    def prefer_own_libraries(self) -> None:
        """Turn DT_RUNPATH into DT_RPATH, in the file."""
        for entry in self._dynamic:
            if entry.tag == _DT_RUNPATH:
                patched = bytearray(self.path.read_bytes())
                struct.pack_into("<Q", patched, entry.offset, _DT_RPATH)
                self.path.write_bytes(patched)

    def _read_dynamic(self, offset: int, length: int) -> Iterator[_Dynamic]:
        for at in range(offset, offset + length, 16):
            tag, value = struct.unpack_from("<QQ", self._data, at)
            if tag == 0:
                return
            yield _Dynamic(at, tag, value)

    def _value(self, tag: int) -> int | None:
        return next((entry.value for entry in self._dynamic if entry.tag == tag), None)

    def _offset(self, address: int) -> int:
        for start, offset, length in self._loads:
            if start <= address < start + length:
                return int(address - start + offset)
        raise ValueError(f"{self.path}: address {address:#x} lies in no segment")

    def _string(self, index: int) -> str:
        start = self._offset(self._value(_DT_STRTAB) or 0) + index
        return self._data[start : self._data.index(b"\0", start)].decode()

    def _version_names(self) -> Iterator[str]:
        address, count = self._value(_DT_VERNEED), self._value(_DT_VERNEEDNUM) or 0
        at = self._offset(address) if address is not None else 0
        for _ in range(count):
            _, entries, _, first, following = struct.unpack_from("<HHIII", self._data, at)
            entry = at + first
            for _ in range(entries):
                _, _, _, name, next_entry = struct.unpack_from("<IHHII", self._data, entry)
                yield self._string(name)
                entry += next_entry
            at += following


def newest_glibc(files: list[Path]) -> tuple[int, ...]:
    """The newest glibc that any of `files` needs; files that are no ELF files need none."""
    newest: tuple[int, ...] = ()
    for file in files:
        with file.open("rb") as head:
            if head.read(4) == b"\x7fELF":
                newest = max(newest, Elf(file).glibc)
    return newest
