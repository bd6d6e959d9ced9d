"""Goal: `connect` does what its user sees: the line, the command, who is there and who is not, and the end."""

from __future__ import annotations

import os
import pty
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.p2p.fake_worker import BUSY, HANG, READY, FakeWorker, eventually, new_token
from tests.p2p.program import command_line, environment, run, running

TOKEN, OURS = new_token()
OTHER_TOKEN, OTHER = new_token()

ENDPOINT = re.compile(r"127\.0\.0\.1:(\d+)\r?$")
SHOW = "import os, sys; print(os.environ['LLAMA_ARG_RPC'], os.environ['LLAMACPP_GRPC_SERVERS'], *sys.argv[1:])"


@pytest.fixture
def one() -> Iterator[FakeWorker]:
    with FakeWorker(OURS, "id-1", "box-1") as worker:
        yield worker


@pytest.fixture
def two() -> Iterator[FakeWorker]:
    with FakeWorker(OURS, "id-2", "box-2") as worker:
        yield worker


def base_port() -> int:
    """Of ports that are free at the moment; other tests' tunnels may have the usual ones."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return min(int(listener.getsockname()[1]), 60_000)


def connect(*workers: FakeWorker) -> list[object]:
    """The words of a `connect` that looks for these workers, in this order, and nowhere else."""
    words: list[object] = ["connect", "--no-mdns", "--base-port", base_port()]
    for worker in workers:
        words += ["--peer", worker.address]
    return words


def at_once(*workers: FakeWorker) -> list[object]:
    """The same for all of these, so that it does not wait for others."""
    return [*connect(*workers), "--workers", len(workers)]


def endpoints(line: str) -> list[tuple[str, int]]:
    assert re.fullmatch(r"127\.0\.0\.1:\d+(,127\.0\.0\.1:\d+)*", line)
    return [("127.0.0.1", int(word.partition(":")[2])) for word in line.split(",")]


def ask(endpoint: tuple[str, int], text: bytes) -> bytes:
    """What comes back through a tunnel."""
    with socket.create_connection(endpoint, timeout=HANG) as client:
        client.sendall(text)
        return client.recv(len(text))


def test_one_line_that_fits_behind_rpc_and_tunnels_in_the_order_of_the_peers(one: FakeWorker, two: FakeWorker) -> None:
    with running(TOKEN, *connect(two, one)) as head:
        first, second = endpoints(head.line())
        assert ask(first, b"to two") == b"to two"
        assert ask(second, b"to one") == b"to one"
        assert (bytes(two.received), bytes(one.received)) == (b"to two", b"to one")
        assert head.process.poll() is None
        head.send(signal.SIGTERM)
        assert head.wait() == 0
        assert len(head.out) == 1
    eventually(lambda: one.left == two.left == ["the head has ended"])


def test_with_a_number_it_waits_for_as_many(one: FakeWorker, two: FakeWorker) -> None:
    two.stop_listening()
    with running(TOKEN, *connect(one, two), "--workers", 2) as head:
        head.says("found: box-1")
        with FakeWorker(OURS, "id-2", "box-2", port=two.port):
            assert len(endpoints(head.line())) == 2


def test_with_a_number_it_takes_no_more(one: FakeWorker, two: FakeWorker) -> None:
    one.status = two.status = BUSY
    with running(TOKEN, *connect(one, two), "--workers", 1) as head:
        head.says("found: box-1")
        head.says("found: box-2")
        head.send(signal.SIGSTOP)  # so that it hears of both at once
        one.tell(READY)
        two.tell(READY)
        head.send(signal.SIGCONT)
        assert len(endpoints(head.line())) == 1


def test_a_busy_worker_is_used_once_it_is_free(one: FakeWorker) -> None:
    one.status = BUSY
    with running(TOKEN, *connect(one)) as head:
        head.says("box-1 (" + str(one.address) + "), busy: other-desk, 42 s")
        time.sleep(2)  # longer than it waits for further ones
        assert head.out == []
        one.tell(READY)
        endpoints(head.line())


def test_who_is_busy_is_named_when_the_time_is_over(one: FakeWorker) -> None:
    one.status = BUSY
    status, out, err = run(TOKEN, *connect(one), "--timeout", 1)
    assert (status, out) == (6, [])
    assert re.search(r"^error: no free worker after 1 s: box-1 is busy: other-desk, 4\d s$", "\n".join(err), re.M)


def test_too_few_is_an_error_that_names_the_others(one: FakeWorker, two: FakeWorker) -> None:
    two.status = BUSY
    status, _, err = run(TOKEN, *connect(one, two), "--timeout", 1, "--workers", 2)
    assert status == 6
    assert any(line.startswith("error: only 1 of 2 workers after 1 s: box-2 is busy: other-desk") for line in err)


def test_nobody_there(one: FakeWorker) -> None:
    one.kill()
    status, out, err = run(TOKEN, *connect(one), "--timeout", 1)
    assert (status, out) == (6, [])
    assert f"error: no worker after 1 s: {one.address} cannot be reached: connection refused" in err
    assert any(line.startswith("hint: ") and "--peer" in line for line in err)


def test_another_token_is_refused_and_nothing_is_offered() -> None:
    with FakeWorker(OTHER) as stranger:
        status, out, err = run(TOKEN, *connect(stranger), "--", sys.executable, "-c", "print('ran')")
    assert (status, out) == (5, [])
    assert f"error: token refused by {stranger.address}" in err


def test_one_that_refuses_does_not_matter_where_another_serves(one: FakeWorker) -> None:
    with FakeWorker(OTHER) as stranger, running(TOKEN, *connect(stranger, one)) as head:
        head.says(f"{stranger.address} token refused")
        assert len(endpoints(head.line())) == 1


def test_different_rpc_protocols_are_named_before_anything_starts(one: FakeWorker) -> None:
    with FakeWorker(OURS, "id-2", "box-2", status=replace(READY, rpc="8.1.0")) as newer:
        status, out, err = run(TOKEN, *at_once(one, newer), "--", sys.executable, "-c", "print('ran')")
    assert (status, out) == (1, [])
    assert "error: the workers speak different RPC protocols: box-1 7.0.0, box-2 8.1.0" in err
    assert one.asked == 0


def test_what_the_command_must_speak_is_said_before_it_starts(one: FakeWorker) -> None:
    with FakeWorker(OURS, "id-2", "box-2", status=replace(READY, rpc="7.1.0")) as newer:
        status, _, err = run(TOKEN, *at_once(one, newer), "--", "sh", "-c", "echo ran >&2")
    assert status == 0
    (said,) = [number for number, line in enumerate(err) if "the command must be of a llama.cpp that does" in line]
    assert "speak RPC protocol 7.1.0 (box-1 7.0.0, box-2 7.1.0)" in err[said]
    assert err.index("ran") > said


def test_without_a_command_nothing_is_said_of_one(one: FakeWorker) -> None:
    with running(TOKEN, *at_once(one)) as head:
        head.line()
        head.send(signal.SIGTERM)
        head.wait()
    assert not [line for line in head.err if "the command must" in line]


def test_only_and_exclude_choose_by_name_and_id(one: FakeWorker, two: FakeWorker) -> None:
    for words in (["--only", "box-2"], ["--only", "id-2"], ["--exclude", "box-1"], ["--exclude", "id-1"]):
        with running(TOKEN, *connect(one, two), "--workers", 1, *words) as head:
            [endpoint] = endpoints(head.line())
            two.received.clear()
            ask(endpoint, b"two?")
            assert bytes(two.received) == b"two?"
    assert one.asked == 0


def test_when_all_are_left_out_it_says_so(one: FakeWorker) -> None:
    status, _, err = run(TOKEN, *connect(one), "--only", "box-9", "--timeout", 1)
    assert status == 6
    assert "hint: --only and --exclude leave out box-1" in err


def test_the_command_gets_the_line_where_it_looks_for_it(one: FakeWorker, two: FakeWorker) -> None:
    status, out, _ = run(
        TOKEN, *at_once(one, two), "--", sys.executable, "-c", SHOW, "--rpc", "{rpc}", "x{rpc}y", "a b", "Größe"
    )
    assert status == 0
    line = out[0].split(" ")[0]
    assert len(endpoints(line)) == 2
    assert out == [f"{line} {line} --rpc {line} x{line}y a b Größe"]


def test_the_command_has_the_environment_of_the_user(one: FakeWorker) -> None:
    show = "import os; print(os.environ['LOCALAI_TOKEN'], os.environ['LD_LIBRARY_PATH'])"
    env = {"LD_LIBRARY_PATH": "/opt/theirs"}
    status, out, _ = run(TOKEN, *at_once(one), "--", sys.executable, "-c", show, env=env)
    assert (status, out) == (0, [f"{TOKEN} /opt/theirs"])


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)])
def test_it_ends_as_the_command_ends(one: FakeWorker, script: str, status: int) -> None:
    assert run(TOKEN, *at_once(one), "--", "sh", "-c", script)[0] == status


def test_a_command_that_is_not_there_is_one_clear_error(one: FakeWorker) -> None:
    status, _, err = run(TOKEN, *connect(one), "--", "no-such-program")
    assert status == 1
    assert "error: cannot run no-such-program: not found" in err
    assert one.heads == []


def test_signals_are_passed_on_to_the_command(one: FakeWorker) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        script = f"trap 'echo caught; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
        with running(TOKEN, *at_once(one), "--", "sh", "-c", script) as head:
            assert head.line(0) == "ready"
            head.send(number)
            assert head.wait() == 9
            assert head.out == ["ready", "caught"]


COUNT = """
import signal, time
count = []
signal.signal(signal.SIGINT, lambda *_: count.append(1))
print("counting", flush=True)
while not count: time.sleep(0.05)
time.sleep(1)
print("interrupts:", len(count), flush=True)
"""


def on_a_terminal(*words: object) -> tuple[int, int]:
    """Start it with a terminal of its own; process id and the terminal's other end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command_line(*words), environment(TOKEN, {"COLUMNS": "200", "TERM": "xterm"}))
    return pid, terminal


def interrupt(pid: int, terminal: int) -> None:
    """Ctrl-C as a frozen program gets it: from the terminal, and then from its bootloader."""
    os.write(terminal, b"\x03")
    time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGINT)


def read_until(terminal: int, text: str, then: str = "") -> str:
    """What the terminal shows, up to `text` and then `then`."""
    seen = ""
    deadline = time.monotonic() + HANG
    while then not in seen.partition(text)[2] or text not in seen:
        assert time.monotonic() < deadline, seen
        with suppress(OSError):
            seen += os.read(terminal, 4096).decode(errors="replace")
    return seen


def test_ctrl_c_reaches_the_command_once(one: FakeWorker) -> None:
    pid, terminal = on_a_terminal(*at_once(one), "--", sys.executable, "-c", COUNT)
    read_until(terminal, "counting")
    interrupt(pid, terminal)
    assert "interrupts: 1\r\n" in read_until(terminal, "interrupts: ", "\n")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_a_live_table_on_a_terminal(one: FakeWorker) -> None:
    pid, terminal = on_a_terminal(*at_once(one))
    seen = read_until(terminal, "traffic")  # a heading
    [endpoint] = [found for line in seen.splitlines() if "," not in line for found in ENDPOINT.findall(line)][:1]
    with socket.create_connection(("127.0.0.1", int(endpoint)), timeout=HANG) as client:
        client.sendall(bytes(2_000_000))
        while len(one.received) < 2_000_000:
            client.recv(1 << 20)
        seen += read_until(terminal, "2.0 MB")
    for shown in ("box-1", str(one.address), endpoint, "CUDA0", "RTX 4090", "23.0 / 24.0 GiB", "7.0.0", "ready"):
        assert shown in seen.partition("traffic")[2]
    interrupt(pid, terminal)
    rest = read_until(terminal, "\x1b[?25h")
    assert "Traceback" not in seen + rest
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)


def test_two_interrupts_at_once_are_one_and_end_it_well(one: FakeWorker) -> None:
    with running(TOKEN, *at_once(one)) as head:
        head.line()
        head.send(signal.SIGINT)
        head.send(signal.SIGINT)
        assert head.wait() == 0
        assert "Traceback" not in "".join(head.err)


def test_an_interrupt_while_it_still_waits(one: FakeWorker) -> None:
    one.kill()
    with running(TOKEN, *connect(one), "--", "echo", "ran") as head:
        head.says("cannot be reached")
        head.send(signal.SIGINT)
        assert head.wait() == 130
        assert head.out == []


def test_nohup_is_respected(one: FakeWorker) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with running(TOKEN, *at_once(one), preexec_fn=ignore) as head:
        head.line()
        head.send(signal.SIGHUP)
        time.sleep(0.5)
        assert head.process.poll() is None


def test_the_command_does_not_outlive_a_head_that_is_killed(one: FakeWorker) -> None:
    script = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with running(TOKEN, *at_once(one), "--", sys.executable, "-c", script) as head:
        pid = int(head.line())
        head.process.kill()
        eventually(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())


def test_a_new_worker_gets_a_tunnel_and_the_user_is_told_what_it_is_good_for(one: FakeWorker, two: FakeWorker) -> None:
    two.stop_listening()
    with running(TOKEN, *connect(one, two)) as head:
        line = head.line()
        with FakeWorker(OURS, "id-2", "box-2", port=two.port):
            head.says("found: box-2")
            head.says("leads to box-2")
            head.says("llama.cpp takes its workers when it starts")
            [told] = [line for line in head.err if "llama.cpp takes" in line]
            both = endpoints(told.rpartition(" ")[2])
            assert both[:1] == endpoints(line)
            assert ask(both[1], b"new") == b"new"
            assert len(head.out) == 1


def test_a_new_worker_of_another_protocol_is_left_out(one: FakeWorker, two: FakeWorker) -> None:
    two.stop_listening()
    with running(TOKEN, *connect(one, two), "--workers", 1) as head:
        head.line()
        with FakeWorker(OURS, "id-2", "box-2", port=two.port, status=replace(READY, rpc="8.0.0")):
            head.says("box-2 speaks RPC 8.0.0, the others 7.0.0")
        assert not any("leads to box-2" in line for line in head.err)


def test_the_log_follows_workers_and_the_port_stays(one: FakeWorker) -> None:
    with running(TOKEN, *at_once(one)) as head:
        [endpoint] = endpoints(head.line())
        one.tell(BUSY)
        head.says("box-1 is busy: other-desk, 42 s")
        one.tell(READY)
        head.says("box-1 is ready")
        one.stop()
        head.says("lost: box-1 (" + str(one.address) + "): it said goodbye")
        with FakeWorker(OURS, "id-1", "box-1", port=one.port):
            head.says("back: box-1")
            assert ask(endpoint, b"again") == b"again"


def test_a_tunnel_that_breaks_is_told_of_with_what_it_does_to_llama_cpp(one: FakeWorker) -> None:
    with running(TOKEN, *at_once(one)) as head:
        [endpoint] = endpoints(head.line())
        with socket.create_connection(endpoint, timeout=HANG) as client:
            client.sendall(b"x")
            client.recv(1)
            one.kill()
            assert client.recv(1) == b""
        head.says("the tunnel to box-1 was cut off")
        head.says("GGML_ABORT")
        head.says("lost: box-1")
        with socket.create_connection(endpoint, timeout=HANG) as client:
            assert client.recv(1) == b""
        head.says("box-1 is not there")
        head.send(signal.SIGTERM)
        assert head.wait() == 0
        assert len([line for line in head.err if "GGML_ABORT" in line]) == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--workers", "0"], "argument --workers: invalid number value: '0'"),
        (["--timeout", "0"], "argument --timeout: invalid number of seconds value: '0'"),
        (["--timeout", "nan"], "argument --timeout: invalid number of seconds value: 'nan'"),
        (["--base-port", "70000"], "argument --base-port: invalid port value: '70000'"),
        (["--no-mdns"], "there is nowhere to look: --no-mdns and no --peer"),
        (["--"], "there is no command after --"),
    ],
)
def test_mistakes_of_the_user(words: list[str], error: str) -> None:
    status, out, err = run(TOKEN, "connect", *words)
    assert (status, out) == (2, [])
    assert f"error: {error}" in err


def test_the_token_is_nowhere(one: FakeWorker) -> None:
    status, out, err = run(TOKEN, *at_once(one), "--log-level", "trace", "--", "true")
    assert status == 0
    assert TOKEN not in "\n".join(out + err)
    assert any("fingerprint" in line for line in err)


def test_stdout_that_nobody_reads(one: FakeWorker) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with running(TOKEN, *at_once(one), stdout=writing) as head:
        os.close(writing)
        assert head.wait() == 1
        assert "Traceback" not in "".join(head.err)
