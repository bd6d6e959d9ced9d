"""The payload's archive: its files one after the other, in segments that are compressed apart.

A tar in one stream would keep one processor busy; a first start waits for this.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Callable, Iterator
from functools import partial

from app import parallel
from app.manifest import Manifest

SEGMENT = 18 * 2**20
"""Bytes of plain content: with a Vulkan backend four, for so many processors; half of it packs 3 % worse."""
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 32 * 2**20}]
"""The dictionary spans the whole segment."""


def count(manifest: Manifest) -> int:
    """How many segments the files make."""
    size = sum(entry.size for entry in manifest.files.values())
    return -(-size // SEGMENT)


def compress(manifest: Manifest, read: Callable[[str], bytes]) -> Iterator[bytes]:
    """The segments of the files, whose contents `read` gives by their paths. Equal files give equal bytes."""
    whole = b"".join(read(path) for path in sorted(manifest.files))
    for start in range(0, len(whole), SEGMENT):
        yield lzma.compress(whole[start : start + SEGMENT], check=lzma.CHECK_CRC64, filters=_FILTERS)


def extract(manifest: Manifest, read_segment: Callable[[int], bytes], fd: int) -> None:
    """Write the files into the empty directory `fd`.

    Raises `OSError`; `lzma.LZMAError`, `EOFError` or `ValueError` when a segment is not what was packed.
    """
    for directory in sorted(manifest.directories):
        os.mkdir(directory, 0o700, dir_fd=fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    places: list[tuple[int, int, int]] = []  # where a file begins and ends in the whole, and its descriptor
    size = 0
    try:
        for path, entry in sorted(manifest.files.items()):
            file = os.open(path, flags, entry.mode, dir_fd=fd)
            places.append((size, size + entry.size, file))
            os.fchmod(file, entry.mode)  # whatever the umask is
            size += entry.size
        parallel.run(partial(_write, read_segment, number, size, places) for number in range(count(manifest)))
    finally:
        for _, _, file in places:
            os.close(file)


def _write(read_segment: Callable[[int], bytes], number: int, size: int, places: list[tuple[int, int, int]]) -> None:
    begin = number * SEGMENT
    view = memoryview(_decompress(read_segment(number), min(SEGMENT, size - begin)))
    for start, end, file in places:
        first, last = max(start, begin), min(end, begin + len(view))
        while first < last:
            first += os.pwrite(file, view[first - begin : last - begin], first - start)


def _decompress(data: bytes, size: int) -> bytes:
    """Exactly `size` bytes, whatever `data` claims to hold."""
    decompressor = lzma.LZMADecompressor()
    plain = decompressor.decompress(data, size)
    more = b"" if decompressor.eof else decompressor.decompress(b"", 1)
    if len(plain) != size or more or not decompressor.eof:
        raise ValueError("a segment has another size")
    return plain
