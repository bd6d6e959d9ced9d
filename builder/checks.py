"""`build.py test`, and what measures or attacks: every check, on what was built."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from app.payload import SERVER
from builder.paths import PYTHON, ROOT
from builder.steps import fail, say


@dataclass(frozen=True)
class Built:
    """Everything that the tests drive."""

    full: Path
    small: Path
    with_libc: Path
    tree: Path
    clients: Path
    aarch64_tree: Path | None
    """None where nothing can start it."""
    software_gpu: Mapping[str, str]
    """The environment in which Vulkan finds a driver that needs no GPU; empty where there is none."""

    @property
    def environment(self) -> dict[str, str]:
        """How the tests are told."""
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "WORKER_TEST_BINARY": str(self.full),
            "WORKER_TEST_SMALL_BINARY": str(self.small),
            "WORKER_TEST_LIBC_BINARY": str(self.with_libc),
            "WORKER_TEST_TREE": str(self.tree),
            "WORKER_TEST_AARCH64_TREE": str(self.aarch64_tree or ""),
            "WORKER_TEST_SERVER": str(self.tree / SERVER),
            "WORKER_TEST_CLIENTS": str(self.clients),
            "WORKER_TEST_VULKAN_ENV": json.dumps(dict(self.software_gpu)),
        }


def test(built: Built, selected: list[str]) -> None:
    """Lint, types, unit and live tests; `selected` goes to pytest and leaves lint and types out."""
    whole: list[list[str]] = [
        ["ruff", "check", "--no-cache", "."],
        ["ruff", "format", "--no-cache", "--check", "."],
        ["mypy", "--cache-dir", str(ROOT / "build/mypy")],
    ]
    for check in [*([] if selected else whole), ["pytest", "-p", "no:cacheprovider", *selected]]:
        say(f"{check[0]} ...")
        status = subprocess.run([str(PYTHON), "-m", *check], cwd=ROOT, env=built.environment, check=False).returncode
        if status != 0:
            fail(f"{check[0]} found something", f"again, alone: python3 build.py test {' '.join(selected)}".strip())


def run(built: Built, module: str, words: list[str]) -> NoReturn:
    """Run one of the programs that measure or attack, `python -m MODULE WORDS...`, and end with its status."""
    command = [str(PYTHON), "-m", module, *words]
    env = built.environment | ({"WORKER_FAULTS": "full"} if module == "tests.faults" else {})
    sys.exit(subprocess.run(command, cwd=ROOT, env=env, check=False).returncode)
