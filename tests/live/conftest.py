"""The frozen file, llama.cpp's own programs and a model; `build.py test` says where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.live import model
from tests.live.support import hidden_environment


def _given(name: str) -> Path:
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set: start the tests with python3 build.py test")
    return Path(value)


@pytest.fixture(scope="session")
def binary() -> Path:
    """The full `worker`."""
    return _given("WORKER_TEST_BINARY")


@pytest.fixture(scope="session")
def small_binary() -> Path:
    """The `worker` without p2p."""
    return _given("WORKER_TEST_SMALL_BINARY")


@pytest.fixture(scope="session")
def libc_binary() -> Path:
    """A `worker` that carries the C library too."""
    return _given("WORKER_TEST_LIBC_BINARY")


@pytest.fixture(scope="session")
def clients() -> Path:
    """The directory of llama-bench, llama-completion, llama-cli and llama-server."""
    return _given("WORKER_TEST_CLIENTS")


@pytest.fixture(scope="session")
def tree() -> Path:
    """The native part as it was staged: the bare server and its libraries."""
    return _given("WORKER_TEST_TREE")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF model with random weights."""
    return model.make(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    """An assets directory of this test's own."""
    return Path(os.path.realpath(tmp_path)) / "assets"


@pytest.fixture
def env(assets: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a user whose directories are this test's own."""
    return hidden_environment(BACKEND_ASSETS_PATH=str(assets), HOME=str(tmp_path), TMPDIR=str(_scratch(tmp_path)))


def _scratch(tmp_path: Path) -> Path:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    return scratch
