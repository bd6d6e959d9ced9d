"""Goal: an archive is taken from a mirror only when its hash is the pinned one, and what cannot be had is said."""

from __future__ import annotations

import hashlib
import http.server
import io
import lzma
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from builder import debian


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The address of a mirror on loopback, and the directory that it serves."""
    root = tmp_path / "mirror"
    root.mkdir()

    class Silent(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(root)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", root
    server.shutdown()
    thread.join()
    server.server_close()


def pin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes) -> None:
    lock = tmp_path / "debian.txt"
    lock.write_text(f"# a comment\n\nany pool/x.tar {hashlib.sha256(content).hexdigest()}\nvax pool/y.tar 00\n")
    monkeypatch.setattr(debian, "LOCK", lock)


def test_what_has_the_pinned_hash_is_fetched_once(
    mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, root = mirror
    pin(monkeypatch, tmp_path, b"right")
    (root / "pool").mkdir()
    (root / "pool/x.tar").write_bytes(b"right")
    debian.fetch(tmp_path / "archives", address)
    assert [path.name for path in (tmp_path / "archives").iterdir()] == ["x.tar"]
    debian.fetch(tmp_path / "archives", "http://127.0.0.1:1")  # nothing is missing, so nobody is asked
    debian.fetch(tmp_path / "archives", None, offline=True)


def test_another_file_of_that_name_is_not_kept(
    mirror: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, root = mirror
    pin(monkeypatch, tmp_path, b"right")
    (root / "pool").mkdir()
    (root / "pool/x.tar").write_bytes(b"wrong")
    with pytest.raises(debian.Unavailable, match="another file"):
        debian.fetch(tmp_path / "archives", address)
    assert list((tmp_path / "archives").iterdir()) == []


def test_what_cannot_be_reached_or_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, tmp_path, b"right")
    with pytest.raises(debian.Unavailable, match=r"x\.tar.*--debian-mirror"):
        debian.fetch(tmp_path / "archives", "http://127.0.0.1:1")
    with pytest.raises(debian.Unavailable, match=r"x\.tar.*fetch DIR"):
        debian.fetch(tmp_path / "archives", None, offline=True)


def test_the_files_of_a_package(tmp_path: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        member = tarfile.TarInfo("./usr/bin/tool")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": lzma.compress(data.getvalue())}
    package = b"!<arch>\n"
    for name, content in members.items():
        package += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        package += b"\n" * (len(content) % 2)
    (tmp_path / "tool.deb").write_bytes(package)
    debian.unpack_deb(tmp_path / "tool.deb", tmp_path / "root")
    assert (tmp_path / "root/usr/bin/tool").read_bytes() == b"abc"


def test_what_is_no_package(tmp_path: Path) -> None:
    (tmp_path / "tool.deb").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="not a Debian package"):
        debian.unpack_deb(tmp_path / "tool.deb", tmp_path)


def test_every_line_of_the_lock_is_a_path_and_a_hash() -> None:
    assert len(debian.pinned()) >= 7
    for archive in debian.pinned():
        assert archive.path.startswith("pool/")
        assert len(bytes.fromhex(archive.sha256)) == 32
