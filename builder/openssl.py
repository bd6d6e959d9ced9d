"""The OpenSSL that is packed in place of the interpreter's own, where that is older: it decides the relay's speed.

3.5 uses the wide AES instructions that 3.0 does not (docs/SPEED.md), and gets its security fixes by
a new hash here rather than by an upgrade of the building machine.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import ssl
import zipfile
from pathlib import Path

from builder.environment import LOCKS, download
from builder.paths import BUILD, DOWNLOADS
from builder.steps import digest, fail, once

PLATFORMS = {"x86_64": "manylinux_2_17_x86_64", "aarch64": "manylinux_2_27_aarch64"}
"""Of the pinned wheel. What else it holds is for one version of Python; the libraries are for all."""
_PYTHON = "3.11"
_INSIDE = re.compile(r"psycopg_binary\.libs/(lib(?:ssl|crypto))(-[0-9a-f]+)\.so\.3")
_VERSION = re.compile(rb"OpenSSL (3\.\d+\.\d+) ")
LIBCRYPTO, LIBSSL = "libcrypto.so.3", "libssl.so.3"
"""As every Python on OpenSSL 3 asks for them."""


def prepare(offline: Path | None) -> Path | None:
    """A directory with both libraries; None where the interpreter's own OpenSSL will do, or must."""
    target = BUILD / "openssl"
    if platform.machine() not in PLATFORMS or ssl.OPENSSL_VERSION_INFO[0] != 3:
        return None
    files = [target / LIBCRYPTO, target / LIBSSL]
    key = digest(platform.machine(), files=[LOCKS["openssl"], Path(__file__)])
    once("openssl", key, files, lambda: extract(offline or _fetch(), target))
    ours = tuple(map(int, version(files[0]).split(".")))
    return target if ours > ssl.OPENSSL_VERSION_INFO[:3] else None


def fetch(target: Path) -> None:
    """Put the wheel into `target`; nothing where none is of use."""
    if platform.machine() not in PLATFORMS:
        return
    kind = ("--python-version", _PYTHON, "--platform", PLATFORMS[platform.machine()], "--only-binary", ":all:")
    download("openssl", target, *kind)


def version(libcrypto: Path) -> str:
    """Such as 3.5.9."""
    found = _VERSION.search(libcrypto.read_bytes())
    if found is None:
        fail(f"{libcrypto} tells no version of OpenSSL 3")
    return found[1].decode()


def _fetch() -> Path:
    fetch(DOWNLOADS)
    return DOWNLOADS


def extract(archives: Path, target: Path) -> None:
    """Write both libraries into `target` out of the wheel in `archives`; ends the build if there is none."""
    allowed = set(re.findall(r"sha256:([0-9a-f]{64})", LOCKS["openssl"].read_text()))
    wheels = [
        wheel
        for wheel in archives.glob(f"psycopg_binary-*_{platform.machine()}.whl")
        if hashlib.sha256(wheel.read_bytes()).hexdigest() in allowed
    ]
    if not wheels:
        fail(f"{archives} holds no wheel that {LOCKS['openssl'].name} names", "`python3 build.py fetch DIR` fills it")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with zipfile.ZipFile(wheels[0]) as wheel:
        found = {name: match for name in wheel.namelist() if (match := _INSIDE.fullmatch(name))}
        if len(found) != 2:
            fail(f"{wheels[0].name} does not hold one {LIBCRYPTO} and one {LIBSSL}")
        for name in found:
            data = wheel.read(name)
            for library in found.values():
                data = _rename(data, f"{library[1]}{library[2]}.so.3", f"{library[1]}.so.3")
            (target / f"{found[name][1]}.so.3").write_bytes(data)


def _rename(data: bytes, old: str, new: str) -> bytes:
    """Wheels name their libraries with a hash. The dynamic loader reads each name up to its first zero."""
    return data.replace(old.encode() + b"\0", new.encode().ljust(len(old) + 1, b"\0"))
