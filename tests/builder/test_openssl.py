"""Goal: the two libraries come out of their wheel under the names that Python asks for, and find each other."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from builder import openssl
from builder.elf import Elf
from builder.environment import LOCKS
from builder.native import GLIBC
from builder.paths import BUILD

WHEEL = f"psycopg_binary-3.3.9-cp311-cp311-linux_{platform.machine()}.whl"
CRYPTO = b"\0OpenSSL 3.5.9 29 Sep 2026\0libcrypto-0123abcd.so.3\0"
SSL = b"\0libssl-4567cdef.so.3\0libcrypto-0123abcd.so.3\0libz.so.1\0"


def wheel(monkeypatch: pytest.MonkeyPatch, directory: Path, *names: str) -> None:
    """A wheel with those libraries, and a lock file that names it."""
    contents = {"libcrypto-0123abcd.so.3": CRYPTO, "libssl-4567cdef.so.3": SSL, "libpq-89abcdef.so.5": b"other"}
    with zipfile.ZipFile(directory / WHEEL, "w") as archive:
        for name in names:
            archive.writestr(f"psycopg_binary.libs/{name}", contents[name])
    lock = directory / "openssl.txt"
    lock.write_text(
        f"psycopg-binary==3.3.9 --hash=sha256:{hashlib.sha256((directory / WHEEL).read_bytes()).hexdigest()}"
    )
    monkeypatch.setitem(LOCKS, "openssl", lock)


def test_names_lose_their_hash_and_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel(monkeypatch, tmp_path, "libcrypto-0123abcd.so.3", "libssl-4567cdef.so.3", "libpq-89abcdef.so.5")
    target = tmp_path / "out"
    openssl.extract(tmp_path, target)
    assert sorted(path.name for path in target.iterdir()) == ["libcrypto.so.3", "libssl.so.3"]
    library = (target / "libssl.so.3").read_bytes()
    assert [word for word in library.split(b"\0") if word] == [b"libssl.so.3", b"libcrypto.so.3", b"libz.so.1"]
    assert len(library) == len(SSL)
    assert openssl.version(target / "libcrypto.so.3") == "3.5.9"


@pytest.mark.parametrize("names", [(), ("libssl-4567cdef.so.3",)])
def test_a_wheel_without_them(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(monkeypatch, tmp_path, *names)
    with pytest.raises(SystemExit):
        openssl.extract(tmp_path, tmp_path / "out")
    assert "does not hold" in capsys.readouterr().err


def test_a_wheel_that_the_lock_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(monkeypatch, tmp_path, "libcrypto-0123abcd.so.3", "libssl-4567cdef.so.3")
    with zipfile.ZipFile(tmp_path / WHEEL, "a") as archive:
        archive.writestr("other", b"")
    with pytest.raises(SystemExit):
        openssl.extract(tmp_path, tmp_path / "out")
    assert "openssl.txt names" in capsys.readouterr().err


def test_no_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        openssl.extract(tmp_path, tmp_path / "out")
    assert "build.py fetch" in capsys.readouterr().err


def test_the_real_ones_find_each_other() -> None:
    built = BUILD / "openssl"
    if not built.exists():
        pytest.skip("this build took the interpreter's own OpenSSL")
    assert "libcrypto.so.3" in Elf(built / "libssl.so.3").needed
    assert max(Elf(path).glibc for path in built.iterdir()) <= GLIBC
    shown = subprocess.run(
        [sys.executable, "-c", "import ssl; print(ssl.OPENSSL_VERSION)"],
        capture_output=True, text=True, check=True, env=os.environ | {"LD_LIBRARY_PATH": str(built)},
    )  # fmt: skip
    assert openssl.version(built / "libcrypto.so.3") in shown.stdout
