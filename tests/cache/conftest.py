"""The carried `worker-cache`, and a model whose tensors are large enough for rpc-server to cache them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.payload import CACHE_TOOL, Assets
from tests.live import model

LARGE = model.Shape(layers=1, width=1024, heads=8, feed_forward=3072)
"""Three tensors of 12 MiB, and 18 MiB in smaller ones."""


@pytest.fixture(scope="session")
def tree() -> Path:
    """The native part as it was staged."""
    found = Path(os.environ.get("WORKER_TEST_TREE") or "/nonexistent")
    if not (found / CACHE_TOOL).exists():
        pytest.skip("WORKER_TEST_TREE holds no worker-cache: start the tests with python3 build.py test")
    return found


@pytest.fixture
def assets(tree: Path) -> Iterator[Assets]:
    """The same, as unpacked files."""
    yield Assets(tree.parent, tree, os.open(tree, os.O_RDONLY | os.O_DIRECTORY))  # who gets it closes it


@pytest.fixture(scope="session")
def large_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """57 MB."""
    return model.make(tmp_path_factory.mktemp("model") / "large.gguf", LARGE)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An empty cache."""
    made = tmp_path / "cache/rpc"
    made.mkdir(parents=True)
    return made
