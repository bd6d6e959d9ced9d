"""The native part as one archive: made with `--target` on one machine, taken up with `--native` on the target."""

from __future__ import annotations

import io
import json
import platform
import tarfile
from pathlib import Path

from builder.native import Tree
from builder.paths import BUILD, DIST
from builder.steps import digest, fail, safe_members

_FACTS = "facts.json"
_WORKER, _HEAD = "imported", "imported-head"
"""Named as what builder/package.py makes of them shall be, apart from what is made of a tree that was compiled here."""


def export(tree: Tree, head: Path | None) -> Path:
    """Write the staged trees and what is known of them as one archive."""
    archive = DIST / f"worker-native-{tree.target}.tar.xz"
    DIST.mkdir(exist_ok=True)
    facts = json.dumps({**vars(tree), "path": ""}).encode()
    with tarfile.open(archive, "w:xz") as tar:
        tar.add(tree.path, _WORKER)
        if head is not None:
            tar.add(head, _HEAD)
        member = tarfile.TarInfo(_FACTS)
        member.size = len(facts)
        tar.addfile(member, io.BytesIO(facts))
    return archive


def imported(archive: Path) -> tuple[Tree, Path | None]:
    """The trees that `export` wrote on another machine."""
    if not archive.is_file():
        fail(f"{archive} is missing", "`python3 build.py --target aarch64` makes it on another machine")
    directory = BUILD / "imported" / digest(files=[archive])[:12]
    if not (directory / _FACTS).exists():
        with safe_members(tarfile.open(archive)) as tar:
            tar.extractall(directory)  # noqa: S202 - safe_members refuses what leaves it
    tree, head = directory / _WORKER, directory / _HEAD
    if not tree.is_dir():
        fail(f"{archive} was made by another version of build.py", "make it anew with --target")
    facts = json.loads((directory / _FACTS).read_text())
    if facts["target"] != platform.machine():
        fail(
            f"{archive} is for {facts['target']}",
            f"this machine is {platform.machine()}: take the archive to the target",
        )
    return Tree(**{**facts, "path": tree}), head if head.is_dir() else None
