"""Goal: the files come out of their segments as they went in, across the borders, and nothing else is believed."""

from __future__ import annotations

import hashlib
import lzma
import os
from pathlib import Path

import pytest

from app import segments
from app.manifest import FileEntry, Manifest
from tests.conftest import NATIVE, OPTIONS


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Files that end before, on and after the borders of segments of 1000 bytes."""
    monkeypatch.setattr(segments, "SEGMENT", 1000)
    sizes = {"a/one": 400, "a/two": 600, "a/three": 2500, "b/c/empty": 0, "b/last": 7}
    return {name: os.urandom(size) for name, size in sizes.items()}


def manifest(files: dict[str, bytes]) -> Manifest:
    table = {name: FileEntry(hashlib.sha256(data).hexdigest(), len(data), 0o700) for name, data in files.items()}
    return Manifest(table, OPTIONS, NATIVE)


def extract(table: Manifest, packed: list[bytes], target: Path) -> None:
    target.mkdir()
    fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
    try:
        segments.extract(table, packed.__getitem__, fd)
    finally:
        os.close(fd)


def test_there_and_back(files: dict[str, bytes], tmp_path: Path) -> None:
    packed = list(segments.compress(manifest(files), files.__getitem__))
    assert len(packed) == segments.count(manifest(files)) == 4
    extract(manifest(files), packed, tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == files
    assert {oct(path.stat().st_mode & 0o777) for path in found.values()} == {"0o700"}


def test_equal_files_give_equal_bytes(files: dict[str, bytes]) -> None:
    again = dict(reversed(files.items()))
    assert list(segments.compress(manifest(files), files.__getitem__)) == list(
        segments.compress(manifest(again), again.__getitem__)
    )


@pytest.mark.parametrize("other", [b"", b"x" * 999, b"x" * 1001, b"x" * 10_000_000])
def test_a_segment_of_another_size(files: dict[str, bytes], tmp_path: Path, other: bytes) -> None:
    packed = list(segments.compress(manifest(files), files.__getitem__))
    packed[1] = lzma.compress(other)
    with pytest.raises(ValueError, match="another size"):
        extract(manifest(files), packed, tmp_path / "out")


def test_what_is_no_archive(files: dict[str, bytes], tmp_path: Path) -> None:
    packed = list(segments.compress(manifest(files), files.__getitem__))
    packed[2] = b"garbage"
    with pytest.raises(lzma.LZMAError):
        extract(manifest(files), packed, tmp_path / "out")
