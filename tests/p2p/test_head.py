"""Goal: `list` shows who is there and why others cannot be used, to people and to programs."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.p2p.fake_worker import BUSY, GPU, FakeWorker, eventually, new_token
from tests.p2p.program import command_line, environment, run, running

TOKEN, OURS = new_token()
_, OTHER = new_token()
LONG = 1000
"""Seconds of --timeout that nobody waits for."""


def look(*workers: FakeWorker, timeout: float = LONG) -> list[object]:
    """The words of a `list` that asks these workers and nobody else."""
    words: list[object] = ["list", "--no-mdns", "--timeout", timeout]
    for worker in workers:
        words += ["--peer", worker.address]
    return words


def as_json(*words: object) -> tuple[int, list[dict[str, Any]], list[str]]:
    status, out, err = run(TOKEN, *words, "--json")
    return status, json.loads("\n".join(out)), err


def test_a_table_that_ends_when_every_peer_has_answered() -> None:
    with (
        FakeWorker(OURS, "id-1", "box-1") as one,
        FakeWorker(
            OURS, "id-2", "box-2", host="::1", status=replace(BUSY, devices=(GPU, replace(GPU, name="CPU")))
        ) as two,
    ):
        status, out, _ = run(TOKEN, *look(one, two))
    assert status == 0
    assert out[0].split() == [
        "name",
        "id",
        "address",
        "state",
        "device",
        "free",
        "/",
        "total",
        "rpc",
        "llama.cpp",
        "version",
    ]
    assert out[1].split()[:4] == ["box-1", "id-1", str(one.address), "ready"]
    assert "CUDA0 NVIDIA GeForce RTX 4090  23.0 / 24.0 GiB  7.0.0  0.5.0      0.1.0" in out[1]
    assert out[2].startswith(f"box-2  id-2  [::1]:{two.port}")
    assert "busy: other-desk, 42 s" in out[2]
    assert out[3].split()[0] == "CPU"
    assert len(out) == 4
    assert out[1].index("CUDA0") == out[3].index("CPU")


def test_json_has_all_that_is_known() -> None:
    with FakeWorker(OURS, "id-1", "box-1", status=BUSY) as worker:
        status, [row], _ = as_json(*look(worker))
    assert status == 0
    assert row == {
        "id": "id-1",
        "name": "box-1",
        "addresses": [str(worker.address)],
        "state": "busy",
        "holder": "other-desk",
        "since": 42,
        "devices": [asdict(GPU)],
        "rpc": "7.0.0",
        "llama_cpp": "0.5.0",
        "llama_cpp_commit": "0c1e57098",
        "version": "0.1.0",
        "sandbox": "on",
        "found": "peer",
        "problem": None,
    }


def test_json_says_why_others_cannot_be_used() -> None:
    with FakeWorker(OURS) as worker, FakeWorker(OTHER) as stranger, FakeWorker(OURS) as gone:
        gone.kill()
        status, rows, _ = as_json(*look(gone, stranger, worker))
    assert status == 0
    assert [row["problem"] for row in rows] == [None, "cannot be reached: connection refused", "token refused"]
    assert [row["addresses"] for row in rows[1:]] == [[str(gone.address)], [str(stranger.address)]]
    assert [list(row) for row in rows[1:]] == [list(rows[0])] * 2


def test_looking_takes_nothing_and_says_goodbye() -> None:
    with FakeWorker(OURS) as worker:
        assert run(TOKEN, *look(worker))[0] == 0
        eventually(lambda: worker.left)
        assert [head.purpose.value for head in worker.heads] == ["list"]
        assert worker.asked == 0


def test_it_stops_at_its_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, FakeWorker(OURS) as worker:
        status, rows, _ = as_json(*look(worker, timeout=1), "--peer", f"127.0.0.1:{silent.getsockname()[1]}")
    assert (status, len(rows)) == (0, 1)


def test_another_token() -> None:
    with FakeWorker(OTHER) as one, FakeWorker(OTHER) as two:
        status, rows, err = as_json(*look(one, two))
    assert status == 5
    assert [row["problem"] for row in rows] == ["token refused"] * 2
    assert f"error: token refused by {one.address}, {two.address}" in err


def test_nobody() -> None:
    with FakeWorker(OURS) as worker:
        worker.kill()
        status, out, err = run(TOKEN, *look(worker))
    assert status == 6
    assert len(out) == 2
    assert f"error: no worker answered: {worker.address} cannot be reached: connection refused" in err


def test_peers_from_the_environment_and_a_file(tmp_path: Path) -> None:
    with FakeWorker(OURS, "id-1") as one, FakeWorker(OURS, "id-2") as two:
        (tmp_path / "peers").write_text(f"# the lab\n\n{two.address}  # upstairs\n")
        words = ["list", "--no-mdns", "--json", "--peers-file", tmp_path / "peers"]
        status, out, _ = run(TOKEN, *words, env={"WORKER_PEERS": str(one.address)})
    assert status == 0
    assert [row["id"] for row in json.loads("\n".join(out))] == ["id-1", "id-2"]


def test_watching_prints_a_line_for_each_change() -> None:
    with FakeWorker(OURS, "id-1", "box-1") as worker, running(TOKEN, *look(worker), "--watch") as program:
        assert program.line(0).startswith(f"found: box-1 ({worker.address}), ready, RPC 7.0.0, CUDA0")
        worker.tell(BUSY)
        assert program.line(1) == "box-1 is busy: other-desk, 42 s"
        worker.stop()
        assert program.line(2) == f"lost: box-1 ({worker.address}): it said goodbye"
        program.send(signal.SIGINT)
        assert program.wait() == 0
        assert "Traceback" not in "".join(program.err)


def test_watching_as_json_prints_an_object_for_each_change() -> None:
    with (
        FakeWorker(OURS, "id-1") as worker,
        FakeWorker(OTHER) as stranger,
        running(TOKEN, *look(worker, stranger), "--watch", "--json") as program,
    ):
        rows = sorted((json.loads(program.line(at)) for at in range(2)), key=lambda row: str(row["problem"]))
        assert [(row["state"], row["problem"]) for row in rows] == [("ready", None), (None, "token refused")]
        worker.tell(BUSY)
        row = json.loads(program.line(2))
        assert (row["state"], row["holder"]) == ("busy", "other-desk")
        worker.kill()
        row = json.loads(program.line(3))
        assert (row["id"], row["state"], row["problem"]) == ("id-1", None, "lost")


def test_watching_on_a_terminal_is_a_table_that_follows() -> None:
    with FakeWorker(OURS, "id-1", "[red]box") as worker:
        pid, terminal = pty.fork()
        if pid == 0:
            words = command_line(*look(worker), "--watch")
            os.execve(words[0], words, environment(TOKEN, {"COLUMNS": "200", "TERM": "xterm"}))
        seen = ""

        def shows(text: str) -> bool:
            nonlocal seen
            seen += os.read(terminal, 4096).decode(errors="replace")
            return text in seen

        eventually(lambda: shows("[red]box"))  # a name is text, not markup
        eventually(lambda: shows("ready"))
        worker.tell(BUSY)
        eventually(lambda: shows("busy: other-desk"))
        os.write(terminal, b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        os.close(terminal)


def test_an_interrupt_shows_what_was_found() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, FakeWorker(OURS) as worker:
        words = [*look(worker), "--peer", f"127.0.0.1:{silent.getsockname()[1]}"]
        with running(TOKEN, *words) as program:
            eventually(lambda: worker.left)
            program.send(signal.SIGINT)
            assert program.wait() == 0
            assert program.line(1).startswith("box-1")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--timeout", "0"], "argument --timeout: invalid number of seconds value: '0'"),
        (["--no-mdns"], "there is nowhere to look: --no-mdns and no --peer"),
        (["--peer", "box:port"], "'box:port' is no peer"),
    ],
)
def test_mistakes_of_the_user(words: list[str], error: str) -> None:
    status, out, err = run(TOKEN, "list", *words)
    assert (status, out) == (2, [])
    assert any(line.startswith(f"error: {error}") for line in err)
