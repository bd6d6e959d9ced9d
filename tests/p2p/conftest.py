"""The real rpc-server, for tests that run one; and a payload whose backends are made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.launch import ServerCommand
from tests.backends.conftest import probed  # noqa: F401 - a fixture


@pytest.fixture
def rpc_server() -> ServerCommand:
    """The built rpc-server that WORKER_TEST_SERVER names, its libraries beside it or in `lib` next to its directory."""
    named = os.environ.get("WORKER_TEST_SERVER")
    if not named:
        pytest.skip("WORKER_TEST_SERVER names no rpc-server")
    server = Path(named).resolve(strict=True)
    libraries = f"{server.parent}:{server.parent.parent / 'lib'}"
    return ServerCommand([str(server)], {"LD_LIBRARY_PATH": libraries, "HOME": "/dev/null"}, server.parent)
