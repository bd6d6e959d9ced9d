"""Goal: what is shown of a worker is what it told, in words and units that people read."""

from __future__ import annotations

from dataclasses import replace

from app.p2p.dialer import Found
from app.p2p.frames import Hello, State, Status
from app.p2p.link import Address
from app.p2p.listing import Chronicle, Traffics, TunnelView, as_json, state
from app.p2p.pump import Traffic
from app.p2p.roster import Change, News, Worker
from tests.p2p.fake_worker import BUSY, GPU, READY

HELLO = Hello(1, "id-1", "box-1", "0.1.0", "", "", "", READY)
ADDRESS = Address("10.0.0.1", 25052)
WORKER = Worker(0, "id-1", "key", HELLO, READY, 100.0, ADDRESS, (ADDRESS,), Found.MDNS, 0, there=True)


def with_status(status: Status) -> Worker:
    return replace(WORKER, status=status)


def test_states_in_words() -> None:
    assert state(WORKER, 100.0) == "ready"
    assert state(with_status(BUSY), 100.0) == "busy: other-desk, 42 s"
    assert state(with_status(BUSY), 108.5) == "busy: other-desk, 50 s"
    assert state(with_status(replace(READY, state=State.STARTING)), 100.0) == "starting"
    assert state(replace(WORKER, there=False), 100.0) == "lost"


def test_what_is_not_known_is_null_in_json() -> None:
    row = as_json(with_status(replace(READY, rpc="", devices=(), state=State.STARTING)), 100.0)
    unknown = {"rpc", "llama_cpp", "llama_cpp_commit", "sandbox", "holder", "problem"}
    assert {key for key, value in row.items() if value is None} == unknown
    assert (row["state"], row["found"], row["devices"]) == ("starting", "mdns", [])


def test_a_worker_without_a_name_goes_by_its_id() -> None:
    assert replace(WORKER, hello=replace(HELLO, name="")).name == "id-1"


def test_traffic_and_its_rate() -> None:
    traffics = Traffics()

    def traffic(to_peer: int, from_peer: int, now: float) -> str:
        table = traffics.table([(WORKER, TunnelView(26001, Traffic(to_peer, from_peer)))], now)
        return table.rows[0][-1]

    assert traffic(0, 0, 100.0) == "sent 0 B\nreceived 0 B"
    assert traffic(3_000_000_000, 1_500, 102.0) == "sent 3.0 GB (1.5 GB/s)\nreceived 1.5 kB (750 B/s)"
    assert traffic(3_000_000_000, 1_500, 103.0) == "sent 3.0 GB\nreceived 1.5 kB"


def test_a_worker_without_a_tunnel_has_a_row_too() -> None:
    table = Traffics().table([(with_status(BUSY), None)], 100.0)
    assert table.rows[0][:2] == ("box-1\n10.0.0.1:25052", "-")
    assert table.rows[0][5:] == ("busy: other-desk, 42 s", "")


def test_what_matters_is_said_once() -> None:
    chronicle = Chronicle()

    def said(news: News, status: Status = READY) -> str | None:
        return chronicle.sentence(Change(news, with_status(status), "it said goodbye"))

    assert said(News.FOUND) == (
        "found: box-1 (10.0.0.1:25052), ready, RPC 7.0.0, CUDA0 NVIDIA GeForce RTX 4090 23.0 / 24.0 GiB"
    )
    assert said(News.CHANGED, replace(READY, devices=(replace(GPU, free=0),))) is None
    assert said(News.CHANGED, BUSY) == "box-1 is busy: other-desk, 42 s"
    assert said(News.CHANGED, replace(BUSY, since=50)) is None
    assert said(News.CHANGED, replace(READY, state=State.CHECKING)) is None
    assert said(News.CHANGED, BUSY) is None
    assert said(News.CHANGED) == "box-1 is ready"
    assert said(News.LOST) == "lost: box-1 (10.0.0.1:25052): it said goodbye"
    assert chronicle.sentence(Change(News.TRIED)) is None
