"""Goal: an entry is read from PyInstaller's own archives, in place, whatever stands around it."""

from __future__ import annotations

import io

import pytest

from app.carchive import entries
from app.errors import WorkerError

writers = pytest.importorskip("PyInstaller.archive.writers", reason="PyInstaller is not installed")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive as PyInstaller writes it, with entries of several types."""
    directory = tmp_path_factory.mktemp("archive")
    (directory / "a").write_bytes(b"first" * 1000)
    (directory / "b").write_bytes(b"second")
    table = [
        ("payload/a", str(directory / "a"), False, "a"),
        ("payload/ü", str(directory / "b"), False, "a"),
        ("packed", str(directory / "b"), True, "a"),
        ("data", str(directory / "b"), False, "x"),
    ]
    writers.CArchiveWriter(str(directory / "archive"), table, "libpython3.11.so.1.0")
    return (directory / "archive").read_bytes()


@pytest.mark.parametrize(("before", "behind"), [(b"", b""), (b"\x7fELF" * 5000, b""), (b"\x7fELF", b"sections" * 300)])
def test_entries_are_found_and_read(archive: bytes, before: bytes, behind: bytes) -> None:
    file = io.BytesIO(before + archive + behind)
    found = entries(file)
    assert sorted(found) == ["payload/a", "payload/ü"]
    assert found["payload/a"].read(file) == b"first" * 1000
    assert found["payload/ü"].read(file) == b"second"


@pytest.mark.parametrize("data", [b"", b"\x7fELF" * 100, b"MEI\014\013\012\013\016"])
def test_a_file_without_an_archive_is_told(data: bytes) -> None:
    with pytest.raises(WorkerError, match="carries no rpc-server"):
        entries(io.BytesIO(data))
