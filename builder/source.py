"""llama.cpp's source: out of a hash-pinned source distribution, into build/."""

from __future__ import annotations

import hashlib
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from builder.environment import LOCKS, fetch_source
from builder.paths import BUILD, DOWNLOADS
from builder.steps import fail, once, safe_members, say

_INSIDE = "vendor/llama.cpp/"
COMMIT = "0c1e57098"
"""The commit of llama.cpp that this distribution vendors, from its CHANGELOG."""


@dataclass(frozen=True)
class Source:
    """The unpacked llama.cpp, and what it says of itself."""

    path: Path
    sha256: str
    """Of the archive it came from."""

    @property
    def version(self) -> str:
        """`major.minor.patch` of llama.cpp."""
        text = (self.path / "CMakeLists.txt").read_text()
        return ".".join(_number(text, rf"LLAMA_VERSION_{part} (\d+)") for part in ("MAJOR", "MINOR", "PATCH"))

    @property
    def rpc_protocol(self) -> str:
        """`major.minor.patch` of the RPC protocol."""
        text = (self.path / "ggml/include/ggml-rpc.h").read_text()
        return ".".join(_number(text, rf"RPC_PROTO_{part}_VERSION\s+(\d+)") for part in ("MAJOR", "MINOR", "PATCH"))


def prepare(offline: Path | None) -> Source:
    """Fetch the archive (or take it from `offline`), check its hash, unpack what is needed."""
    lock = LOCKS["source"].read_text()
    name = _number(lock, r"^(\S+)==").replace("-", "_") + "-" + _number(lock, r"==(\S+)") + ".tar.gz"
    sha256 = _number(lock, r"sha256:([0-9a-f]{64})")
    source = Source(BUILD / f"llama.cpp-{sha256[:12]}", sha256)

    def make() -> None:
        directory = offline or DOWNLOADS
        archive = directory / name
        if not archive.exists() and not offline:
            fetch_source(directory)
        if not archive.exists():
            fail(f"{archive} is missing", "fill the directory with `python3 build.py fetch DIR`")
        with archive.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                fail(f"{archive} is not the archive that requirements/source.txt names", "remove it and build again")
        _unpack(archive, source.path)

    once("source", sha256, [source.path / "CMakeLists.txt"], make)
    return source


def _unpack(archive: Path, target: Path) -> None:
    say("unpacking llama.cpp ...")
    shutil.rmtree(target, ignore_errors=True)
    with safe_members(tarfile.open(archive)) as tar:
        for member in tar:
            _, _, inside = member.name.partition("/")
            if inside.startswith(_INSIDE):
                member.name = inside.removeprefix(_INSIDE)
                tar.extract(member, target)


def _number(text: str, pattern: str) -> str:
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        fail(f"cannot find {pattern} in the source")
    return found[1]
