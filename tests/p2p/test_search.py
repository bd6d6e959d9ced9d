"""Goal: announced and named workers are found alike, and an error says where it was looked and what was there."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from app.errors import ExitCode, WorkerError
from app.fields import fill
from app.options import ListOptions
from app.p2p.announcer import Announcer
from app.p2p.dialer import Candidate, Failure, Found
from app.p2p.frames import PROTOCOL, Purpose
from app.p2p.link import Address, LinkError, Problem
from app.p2p.search import Search, not_found, refused
from app.p2p.token import generate
from tests.p2p.fake_worker import FakeWorker, new_token
from tests.p2p.program import run

TOKEN, OURS = new_token()


def options(**given: object) -> ListOptions:
    return fill(ListOptions(**{"token": TOKEN, **given}), {})  # type: ignore[arg-type]


@pytest.fixture
def announce() -> Callable[[FakeWorker], Announcer]:
    def make(worker: FakeWorker) -> Announcer:
        announcer = Announcer(
            "box-1", [OURS.network], port=worker.port, protocol=PROTOCOL, interfaces=("lo",), advertise="127.0.0.1"
        )
        announcer.announce("7.0.0")
        return announcer

    return make


def test_an_announced_worker_is_found(announce: Callable[[FakeWorker], Announcer]) -> None:
    with FakeWorker(OURS, "box-1") as worker:
        announcer = announce(worker)
        try:
            status, out, err = run(TOKEN, "connect", "--interface", "lo", "--workers", 1, "--", "echo", "{rpc}")
        finally:
            announcer.close()
    assert status == 0, err
    assert re.fullmatch(r"127\.0\.0\.1:\d+", out[0])


def test_announced_and_named_it_is_one_worker(announce: Callable[[FakeWorker], Announcer]) -> None:
    with FakeWorker(OURS, "box-1") as worker, FakeWorker(OURS, "box-2") as other:
        announcer = announce(worker)
        try:
            words = ["--peer", other.address, "--peer", worker.address, "--interface", "lo", "--timeout", 2, "--json"]
            status, out, err = run(TOKEN, "list", *words)
        finally:
            announcer.close()
    assert status == 0, err
    assert [row["id"] for row in json.loads("\n".join(out))] == ["box-2", "box-1"]
    assert len(worker.heads) == 2, "it was announced and named, so it should have been reached both ways"


def test_another_network_does_not_see_it(announce: Callable[[FakeWorker], Announcer]) -> None:
    with FakeWorker(OURS, "box-1") as worker:
        announcer = announce(worker)
        try:
            for words in (["--network-id", "lab"], []):
                token = TOKEN if words else generate()
                status, _, err = run(token, "list", *words, "--interface", "lo", "--timeout", 1.5)
                assert status == 6
                assert "error: no worker answered" in err
        finally:
            announcer.close()
    assert worker.heads == []


def test_of_two_tokens_in_a_file_the_first_counts(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n{generate()}\n")
    (tmp_path / "token").chmod(0o600)
    search = Search(options(token=None, token_file=str(tmp_path / "token"), peer=("box",)), Purpose.LIST)
    assert search.head().tag == OURS.tag


def test_every_start_is_another_session() -> None:
    search = Search(options(peer=("box",)), Purpose.LIST)
    assert search.head().session != search.head().session


@pytest.mark.parametrize("given", [{"no_mdns": True}, {"peer": ("box:",)}, {"peers_file": "/nonexistent"}])
def test_what_cannot_be_looked_for_is_said_before_anything_is_done(given: dict[str, object]) -> None:
    with pytest.raises(WorkerError) as caught:
        Search(options(**given), Purpose.LIST)
    assert caught.value.code == ExitCode.USAGE


def failure(host: str, problem: Problem, reason: str = "") -> Failure:
    return Failure(Candidate(host, (Address(host, 25052),), Found.PEER), LinkError(problem, reason))


def test_refused_is_only_said_when_all_refuse() -> None:
    no, gone = failure("a", Problem.REFUSED), failure("b", Problem.UNREACHABLE, "connection refused")
    assert refused([]) is None
    assert refused([no, gone]) is None
    error = refused([no, no])
    assert error is not None
    assert (error.message, error.code) == ("token refused by a:25052, a:25052", ExitCode.REFUSED)


def test_an_error_names_a_few_of_many() -> None:
    many = [failure(f"h{number}", Problem.UNREACHABLE, "no route to host") for number in range(100)]
    error = not_found("no worker after 30 s", ["box is busy: desk, 4 s"], many)
    assert error.code == ExitCode.NOT_FOUND
    assert error.message.startswith(
        "no worker after 30 s: box is busy: desk, 4 s; h0:25052 cannot be reached: no route"
    )
    assert error.message.endswith("and 96 more")
    assert len(error.message) < 500
