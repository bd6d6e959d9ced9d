"""What the attacks share with the live tests, and the record of what each one found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.victim import Victim, victim_on_loopback
from tests.live.conftest import assets, binary, clients, env, tiny_model, tree  # noqa: F401 - fixtures
from tests.live.test_p2p import cluster, expected, hosts  # noqa: F401 - fixtures
from tests.p2p.conftest import rpc_server  # noqa: F401 - a fixture

Record = Callable[[int, str], None]


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Keep what a row printed, for the table."""

    def keep(row: int, text: str) -> None:
        request.node.user_properties.append((f"row {row}", text))
        print(f"row {row}: {text}")

    return keep


@pytest.fixture(scope="module")
def victim(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:  # noqa: F811
    """One frozen worker on loopback for all attacks of a file."""
    with victim_on_loopback(binary, tmp_path_factory.mktemp("victim")) as made:
        yield made
