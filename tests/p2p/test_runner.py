"""Goal: the carried server's arguments are checked, one's own server's are its own, and the address is always ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.errors import WorkerError
from app.options import P2pOptions
from app.p2p.runner import Runner, runner_of
from tests.conftest import MakePayload


@pytest.fixture
def own(tmp_path: Path) -> str:
    server = Path(os.path.realpath(tmp_path)) / "rpc-server"
    server.write_text("#!/bin/sh\n")
    server.chmod(0o755)
    return str(server)


def runner(make_payload: MakePayload, arguments: list[str], **options: object) -> Runner | None:
    return runner_of(P2pOptions(**options), arguments, make_payload(), {"HOME": "/nonexistent"})  # type: ignore[arg-type]


def test_the_carried_one_is_unpacked_and_its_arguments_are_known(make_payload: MakePayload, base: Path) -> None:
    carried = runner(make_payload, ["-t", "2"], backend_assets_path=str(base))
    assert carried is not None
    assert carried.prepare().argv[1:] == ["-t", "2"]
    with pytest.raises(WorkerError, match="no argument '--odd'"):
        runner(make_payload, ["--odd"], backend_assets_path=str(base))
    with pytest.raises(WorkerError, match="help"):
        runner(make_payload, ["--help"], backend_assets_path=str(base))


def test_ones_own_gets_what_is_given_and_nothing_is_unpacked(make_payload: MakePayload, own: str, base: Path) -> None:
    mine = runner(make_payload, ["--odd", "x"], server=own, backend_assets_path=str(base))
    assert mine is not None
    assert mine.prepare().argv == [own, "--odd", "x"]
    assert not base.exists()


@pytest.mark.parametrize("flag", ["-H", "--host", "-p", "--port"])
@pytest.mark.parametrize("whose", ["carried", "own"])
def test_the_address_is_not_to_be_chosen(make_payload: MakePayload, own: str, whose: str, flag: str) -> None:
    value = "1" if "p" in flag else "0.0.0.0"
    with pytest.raises(WorkerError, match="address is not to be chosen"):
        runner(make_payload, [flag, value], server=own if whose == "own" else None)


def test_none_is_run_where_none_is_wanted(make_payload: MakePayload) -> None:
    assert runner(make_payload, [], no_runner=True) is None
