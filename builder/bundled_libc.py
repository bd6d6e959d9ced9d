"""`--bundle-libc`: the building machine's C library and loader, for hosts with an older one or none.

CPU only: a GPU driver of the host would load the host's own C library beside it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from app.payload import LIBRARIES
from builder.elf import Elf
from builder.steps import fail

_SEARCH = (
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
)
_LOADERS = ("ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1")


def add(tree: Path) -> None:
    """Put `ld.so` and every library that the tree needs beside it into `backend-assets/lib`."""
    target = tree / LIBRARIES
    target.mkdir(parents=True)
    own = {file.name for file in (tree / "backend-assets/util").iterdir()}
    pending = [name for file in (tree / "backend-assets/util").iterdir() for name in Elf(file).needed]
    while pending:
        name = pending.pop()
        if name in own:
            continue
        own.add(name)
        found = _find(name)
        shutil.copy(found, target / name)
        (target / name).chmod(0o755)
        if name in _LOADERS:
            shutil.copy(found, target / "ld.so")
            (target / "ld.so").chmod(0o755)
        pending += Elf(found).needed


def _find(name: str) -> Path:
    for directory in _SEARCH:
        if (Path(directory) / name).exists():
            return (Path(directory) / name).resolve()
    fail(f"cannot find {name} on this machine", "--bundle-libc wants a glibc system of the target's architecture")
