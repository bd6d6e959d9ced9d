"""Goal: `serve` keeps llama-server running on the workers that there are, says what it does, and ends when it should.

Workers are fakes behind real TLS, llama-server a script that behaves to its workers as the real one does and writes
what it writes. The real one: tests/live/test_serve.py.
"""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.p2p.fake_worker import BUSY, READY, FakeWorker, eventually, new_token
from tests.p2p.program import Program, command_line, environment, run, running
from tests.p2p.test_session import COUNT, base_port, interrupt, read_until

TOKEN, OURS = new_token()
DOUBLE = "tests.p2p.carried_double"

LLAMA_SERVER = f"""#!{sys.executable}
import os, select, socket, sys, time
from pathlib import Path
log = lambda line: print("0.00.021.399 I " + line, file=sys.stderr, flush=True)
endpoints = os.environ["LLAMA_ARG_RPC"].split(",")
starts = Path(sys.argv[1])
with starts.open("a") as out:
    print(os.getpid(), *endpoints, file=out)
how = sys.argv[2]
if how == "wrong":
    sys.exit("error: invalid argument: --wrong")
links = []
for endpoint in endpoints:
    host, _, port = endpoint.rpartition(":")
    links.append(socket.create_connection((host, int(port))))
    links[-1].sendall(b"load")
    if len(links[-1].recv(4)) < 4:
        os.abort()
    log(f"load_tensors: RPC0[{{endpoint}}] model buffer size =   100.50 MiB")
log("load_tensors:   CPU_Mapped model buffer size =     0.13 MiB")
log("srv  llama_server: listening on http://127.0.0.1:8080")
if how == "crash" and len(starts.read_text().splitlines()) == 1:
    os.abort()
if how == "idle":
    time.sleep(600)
select.select(links, [], [])
os.abort()  # GGML_ABORT
"""

LLAMA_BENCH = f"""#!{sys.executable}
import sys
print(*sys.argv[1:])
sys.exit(7)
"""


@pytest.fixture
def one() -> Iterator[FakeWorker]:
    with FakeWorker(OURS, "id-1", "box-1") as worker:
        yield worker


@pytest.fixture
def two() -> Iterator[FakeWorker]:
    with FakeWorker(OURS, "id-2", "box-2") as worker:
        yield worker


class Bench:
    """The directory of the two programs, and how often llama-server was started."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.env = {"CARRIED_DOUBLE": str(directory)}
        self._starts = directory / "starts"
        for name, text in (("llama-server", LLAMA_SERVER), ("llama-bench", LLAMA_BENCH)):
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)

    @property
    def starts(self) -> list[list[str]]:
        """The process id and the endpoints of each."""
        return [line.split() for line in self._starts.read_text().splitlines()] if self._starts.exists() else []

    def words(self, *workers: FakeWorker, flags: tuple[object, ...] = (), how: str = "busy") -> list[object]:
        """Of a `serve` that looks for these workers, in this order, and nowhere else."""
        peers = [word for worker in workers for word in ("--peer", worker.address)]
        found: list[object] = ["serve", "--no-mdns", "--base-port", base_port(), *peers]
        return [*found, "--workers", len(workers), *flags, "--", self._starts, how]

    @contextmanager
    def serving(self, *workers: FakeWorker, flags: tuple[object, ...] = (), how: str = "busy") -> Iterator[Program]:
        """One whose llama-server is ready."""
        with running(TOKEN, *self.words(*workers, flags=flags, how=how), entry=DOUBLE, env=self.env) as program:
            program.line()
            yield program


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def gone(pid: str) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or " Z " in stat.read_text()


def test_it_says_where_it_listens_and_who_holds_how_much(bench: Bench, one: FakeWorker, two: FakeWorker) -> None:
    with bench.serving(two, one) as head:
        eventually(lambda: len(head.out) == 4)
        width = len(f"box-1 ({one.address})")
        assert head.out == [
            "llama-server is ready on http://127.0.0.1:8080",
            f"  box-2 ({two.address})  100.50 MiB of the model",
            f"  box-1 ({one.address})  100.50 MiB of the model",
            f"  {'this machine':<{width}}  0.13 MiB of the model",
        ]
        eventually(lambda: any("CPU_Mapped model buffer size" in line for line in head.err))  # its log is the user's
        head.send(signal.SIGTERM)
        assert head.wait() == 0
        [[pid, *_]] = bench.starts
        assert gone(pid)


@pytest.mark.parametrize("how", ["busy", "idle"])
def test_a_worker_that_is_lost_is_named_and_the_others_go_on(
    bench: Bench, one: FakeWorker, two: FakeWorker, how: str
) -> None:
    with bench.serving(one, two, flags=("--timeout", 1), how=how) as head:
        one.kill()
        head.says("box-1 was lost: llama-server cannot go on without it")
        head.says(", having lost box-1; it is started again in 1 s")
        head.says("only 1 of 2 workers after 1 s")
        eventually(lambda: len(bench.starts) == 2)
        [[first, *both], [_, *left]] = bench.starts
        assert (gone(first), left) == (True, both[1:])
        head.line(4)
        assert "llama-server is ready" in head.out[4]
        assert "box-1" not in "".join(head.out[5:])


def test_one_that_is_back_has_its_port_and_its_turn_again(bench: Bench, one: FakeWorker, two: FakeWorker) -> None:
    with bench.serving(one, two) as head:
        one.kill()
        head.says("box-1 was lost")
        with FakeWorker(OURS, "id-1", "box-1", port=one.port):
            eventually(lambda: len(bench.starts) == 2)
            [[_, *before], [_, *after]] = bench.starts
            assert before == after


def test_without_a_number_it_goes_on_with_who_is_left(bench: Bench, one: FakeWorker, two: FakeWorker) -> None:
    words = [word for word in bench.words(one, two) if word not in ("--workers", 2)]
    with running(TOKEN, *words, entry=DOUBLE, env=bench.env) as head:
        head.line()
        two.kill()
        eventually(lambda: len(bench.starts) == 2)
        [[_, *before], [_, *after]] = bench.starts
        assert after == before[:1]


def test_it_waits_while_nobody_is_left(bench: Bench, one: FakeWorker) -> None:
    with bench.serving(one, flags=("--timeout", 1)) as head:
        one.kill()
        head.says("no worker after 1 s")
        head.says("waiting until one is back")
        head.send(signal.SIGTERM)
        assert head.wait() == 0
        assert len(bench.starts) == 1


def test_a_worker_that_still_keeps_our_place_is_taken(bench: Bench, one: FakeWorker, two: FakeWorker) -> None:
    with bench.serving(one, two, flags=("--timeout", 1)):
        two.tell(replace(READY, state=READY.state.BUSY, holder=os.uname().nodename, since=3))
        one.kill()
        eventually(lambda: len(bench.starts) == 2)
        assert bench.starts[1][1:] == bench.starts[0][2:]


def test_without_restart_it_ends_as_llama_server_does(bench: Bench, one: FakeWorker) -> None:
    with bench.serving(one, flags=("--no-restart",)) as head:
        one.kill()
        assert head.wait() == 128 + signal.SIGABRT
        assert any("was killed by SIGABRT, having lost box-1" in line for line in head.err)


def test_what_no_worker_is_to_blame_for_is_not_tried_again(bench: Bench, one: FakeWorker) -> None:
    status, out, err = run(TOKEN, *bench.words(one, how="wrong"), entry=DOUBLE, env=bench.env)
    assert (status, out) == (1, [])
    assert "error: invalid argument: --wrong" in err
    assert len(bench.starts) == 1


def test_a_crash_of_its_own_after_it_was_ready_is_tried_again(bench: Bench, one: FakeWorker) -> None:
    with bench.serving(one, how="crash") as head:
        head.says("llama-server was killed by SIGABRT; it is started again in 1 s")
        eventually(lambda: len(bench.starts) == 2)
        assert not any("was lost" in line for line in head.err)


def test_a_load_that_takes_long_is_told_of_until_it_is_through(bench: Bench, one: FakeWorker, two: FakeWorker) -> None:
    two.gate.clear()
    bench.env["PATIENCE"] = "0.25"
    words = bench.words(one, two, how="idle")
    with running(TOKEN, *words, entry=DOUBLE, env=bench.env) as head:
        head.says("llama-server is not ready after 0.25 s; it still loads, or waits for box-1 and box-2")
        head.says("llama-server is not ready after 0.75 s; it still loads, or waits for box-1 and box-2")
        two.gate.set()
        head.line()
        head.send(signal.SIGTERM)
        assert head.wait() == 0
        assert len(bench.starts) == 1


def test_one_that_is_ready_is_not_waited_for(bench: Bench, one: FakeWorker) -> None:
    bench.env["PATIENCE"] = "3"
    with bench.serving(one, how="idle") as head:
        told = [line for line in head.err if "is not ready" in line]
        time.sleep(4)
        assert [line for line in head.err if "is not ready" in line] == told


def test_workers_that_flood_delay_neither_the_end_of_the_search_nor_a_signal(
    bench: Bench, one: FakeWorker, two: FakeWorker
) -> None:
    one.flood = two.flood = (BUSY, READY, READY)
    words = bench.words(one, two, flags=("--timeout", 2, "--workers", 3))
    status, _, err = run(TOKEN, *words, entry=DOUBLE, env=bench.env)
    assert status == 6
    assert any(re.search(r"error: .* after 2 s", line) for line in err)
    assert len(err) < 200
    with bench.serving(one, two, flags=("--workers", 1), how="idle") as head:
        head.send(signal.SIGTERM)
        assert head.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_end_that_the_user_wants_is_clean(bench: Bench, one: FakeWorker, number: signal.Signals) -> None:
    with bench.serving(one, how="idle") as head:
        head.send(number)
        assert head.wait() == 0
        assert gone(bench.starts[0][0])
        assert not any("Traceback" in line for line in head.err)
    eventually(lambda: one.left == ["the head has ended"])


def test_ctrl_c_reaches_llama_server_once_and_is_no_crash(bench: Bench, one: FakeWorker) -> None:
    (bench.directory / "llama-server").write_text(f"#!{sys.executable}\n{COUNT}")
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command_line(*bench.words(one), entry=DOUBLE), environment(TOKEN, bench.env))
    read_until(terminal, "counting")
    interrupt(pid, terminal)
    assert "interrupts: 1\r\n" in read_until(terminal, "interrupts: ", "\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_nothing_outlives_a_serve_that_is_killed(bench: Bench, one: FakeWorker) -> None:
    with bench.serving(one) as head:
        children = Path(f"/proc/{head.process.pid}/task/{head.process.pid}/children").read_text().split()
        head.process.kill()
        eventually(lambda: all(map(gone, [*children, bench.starts[0][0]])))


def test_systemd_is_told_when_it_is_ready(bench: Bench, one: FakeWorker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        bench.env["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        with bench.serving(one) as head:
            assert ear.recv(4096).startswith(b"READY=1\nSTATUS=llama-server is ready on http://127.0.0.1:8080")
            head.send(signal.SIGTERM)
            assert ear.recv(4096) == b"STOPPING=1"


def test_its_log_is_as_talkative_as_the_user_wants(bench: Bench, one: FakeWorker) -> None:
    show = '#!/bin/sh\necho "$LLAMA_ARG_LOG_VERBOSITY"\n'
    (bench.directory / "llama-server").write_text(show)
    for given, expected in (({}, "4"), ({"LLAMA_ARG_LOG_VERBOSITY": "1"}, "1")):
        status, out, _ = run(TOKEN, *bench.words(one), entry=DOUBLE, env=bench.env | given)
        assert (status, out) == (0, [expected])


@pytest.mark.parametrize("command", ["serve", "bench"])
@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "wants the model after --"),
        (["--"], "wants the model after --"),
        (["--", "-m", "x", "--rpc", "127.0.0.1:1"], "--rpc is not to be given"),
        (["--", "--rpc=127.0.0.1:1"], "--rpc is not to be given"),
        (["--workers", "0", "--", "-m", "x"], "argument --workers: invalid number value: '0'"),
    ],
)
def test_mistakes_of_the_user(bench: Bench, command: str, words: list[str], error: str) -> None:
    status, out, err = run(TOKEN, command, *words, entry=DOUBLE, env=bench.env)
    assert (status, out) == (2, [])
    assert error in err[0]
    assert err[1].startswith("hint: ")


@pytest.mark.parametrize("command", ["serve", "bench"])
def test_a_worker_of_another_rpc_protocol_is_named_before_anything_starts(bench: Bench, command: str) -> None:
    with FakeWorker(OURS, "id-3", "box-3", status=replace(READY, rpc="8.1.0")) as newer:
        words = bench.words(newer, flags=("--timeout", 1))
        status, out, err = run(TOKEN, command, *words[1:], entry=DOUBLE, env=bench.env)
    assert (status, out, bench.starts, newer.asked) == (6, [], [], 0)
    [error] = [line for line in err if line.startswith("error: ")]
    assert "box-3 speaks RPC protocol 8.1.0, the llama.cpp of this file 7.0.0" in error


def test_the_benchmark_is_told_of_the_tunnels_and_ends_with_its_status(bench: Bench, one: FakeWorker) -> None:
    words = bench.words(one)
    end = words.index("--")
    status, out, err = run(TOKEN, "bench", *words[1:end], "--", "-m", "a b.gguf", entry=DOUBLE, env=bench.env)
    assert status == 7
    assert re.fullmatch(r"-m a b\.gguf --rpc 127\.0\.0\.1:\d+", out[0])
    assert not any("the command must be" in line for line in err)
