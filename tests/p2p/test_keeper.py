"""Goal: rpc-server runs where only its worker reaches it, is reached at once, and never outlives its worker."""

from __future__ import annotations

import ctypes
import errno
import gc
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.errors import WorkerError
from app.launch import ServerCommand
from app.p2p import landlock, layers
from app.p2p.keeper import Child, Keeper, KeeperLost, start_keeper
from app.p2p.layers import Layer
from tests.p2p.attacker import Try, attacker
from tests.p2p.processes import is_gone, shell, wait_until

HANG_GUARD = 20.0
"""Seconds, generous: reached only when something never happens."""
NOBODY = 65534
HELLO = struct.pack("<BQ24x", 14, 24)
"""llama.cpp's first message: command 14, the length of what follows, no capabilities."""
PR_SET_DUMPABLE = 4  # linux/prctl.h
PR_CAPBSET_DROP = 24
BESIDE = """
import os, socket, sys, time
if os.fork() == 0:
    server = socket.create_server(("127.0.0.1", int(sys.argv[-1])))
    print("listening", flush=True)
time.sleep(1000)
"""
"""A server whose child listens in its place."""
LEAVE_BEHIND = "(setsid sleep 1000 & echo $!)"


@contextmanager
def started(sandbox: str) -> Iterator[Keeper]:
    keeper = start_keeper(sandbox)
    try:
        yield keeper
    finally:
        keeper.close()


def dial(keeper: Keeper, child: Child) -> socket.socket:
    """Dial until the server listens."""
    deadline = time.monotonic() + HANG_GUARD
    while True:
        try:
            return keeper.dial(child, HANG_GUARD)
        except ConnectionRefusedError:
            assert child.wait(0.05) is None, "the server ended"
            assert time.monotonic() < deadline, "the server never listened"


def says_hello(connection: socket.socket) -> bool:
    """Whether an rpc-server answers at the other end; closes the connection."""
    with connection:
        connection.settimeout(HANG_GUARD)
        connection.sendall(HELLO)
        return connection.recv(8, socket.MSG_WAITALL) == struct.pack("<Q", 28)


def read_all(child: Child) -> str:
    with os.fdopen(child.output, errors="surrogateescape") as output:
        return output.read()


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def become(uid: int | None) -> None:
    """Be user `uid` for good, in a child."""
    if uid is not None:
        "".encode("idna")  # loaded now: what is imported later may be out of that user's reach
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # as after an exec


def in_a_fork(body: Callable[[], None], uid: int | None = None) -> None:
    """Run `body` in a child, as user `uid`; what it asserts or skips is asserted or skipped here.

    A fork and not a new program: another user may not be able to read our Python.
    """
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        report = f"the child was still running after {HANG_GUARD} s"
        try:
            signal.alarm(2 * int(HANG_GUARD))
            become(uid)
            body()
            report = ""
        except pytest.skip.Exception as skipped:
            report = f"skip:{skipped.msg}"
        except BaseException:
            report = traceback.format_exc()
        finally:
            os.write(tell, report.encode()[:60000])
            os._exit(0)
    os.close(tell)
    with os.fdopen(told) as reading:
        report = reading.read()
    _, status = os.waitpid(pid, 0)
    if report.startswith("skip:"):
        pytest.skip(report.removeprefix("skip:"))
    assert (report, status) == ("", 0), report


@pytest.fixture(params=["root", "user"])
def user(request: pytest.FixtureRequest) -> int | None:
    """The uid to become: tests run as root, and as somebody without rights."""
    if os.geteuid() == 0:
        return None if request.param == "root" else NOBODY
    if request.param == "root":
        pytest.skip("needs root")
    return None


@pytest.fixture
def sandbox() -> str:
    with started("auto") as keeper:
        if not keeper.has_network:
            pytest.skip(f"this machine allows no namespace: {keeper.missing[Layer.NETWORK]}")
    return "on"


def must_be_able_to_run(command: ServerCommand) -> None:
    if not os.access(command.argv[0], os.X_OK):
        pytest.skip(f"user {os.geteuid()} cannot reach {command.argv[0]}")


def test_in_the_sandbox_only_the_keeper_reaches_the_server(
    rpc_server: ServerCommand, sandbox: str, user: int | None
) -> None:
    def body() -> None:
        must_be_able_to_run(rpc_server)
        with started(sandbox) as keeper:
            child = keeper.spawn(rpc_server)
            assert says_hello(dial(keeper, child))
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", child.port), HANG_GUARD)
            interfaces = Path(f"/proc/{child.pid}/net/dev").read_text().splitlines()[2:]
            assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]

    in_a_fork(body, user)


def test_in_the_sandbox_the_server_reaches_nobody(sandbox: str, user: int | None) -> None:
    def body() -> None:
        with socket.create_server(("127.0.0.1", 0)) as machine:
            script = f"exec 3<>/dev/tcp/127.0.0.1/{machine.getsockname()[1]}"
            for kind, status in ((sandbox, 1), ("off", 0)):  # the second shows that the first could fail
                with started(kind) as keeper:
                    assert keeper.spawn(shell(script)).wait(HANG_GUARD) == status

    in_a_fork(body, user)


def test_without_the_sandbox_the_same_keeper_serves(rpc_server: ServerCommand, user: int | None) -> None:
    def body() -> None:
        must_be_able_to_run(rpc_server)
        with started("off") as keeper:
            assert not keeper.has_network
            assert says_hello(dial(keeper, keeper.spawn(rpc_server)))

    in_a_fork(body, user)


def got(keeper: Keeper, tries: list[Try], cwd: Path = Path("/"), **env: str) -> dict[Try, object]:
    """What a server that was taken over gets."""
    child = keeper.spawn(attacker(tries, cwd, **env))
    output = read_all(child)
    assert child.wait(HANG_GUARD) == 0, output
    told = json.loads(output)
    return {one: told[str(one)] for one in tries}


@pytest.fixture
def all_layers(sandbox: str) -> str:
    if missing := layers.refusals():
        pytest.skip(f"this machine allows less: {missing}")
    return sandbox


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that another user reaches too, as tmp_path is not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as made:
        Path(made).chmod(0o777)
        yield Path(made)


def test_a_server_that_was_taken_over_gets_at_nothing(shared: Path, all_layers: str, user: int | None) -> None:
    """What a program of the same user can do without the sandbox, and cannot within."""

    def body() -> None:
        victim = os.fork()
        if victim == 0:
            time.sleep(2 * HANG_GUARD)
            os._exit(0)
        secret = shared / "secret"
        secret.write_text("token")
        with (
            socket.create_server(("127.0.0.1", 0)) as machine,
            socket.socket(socket.AF_UNIX) as service,
            socket.socket(socket.AF_UNIX) as abstract,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams,
        ):
            service.bind(str(shared / "service"))
            service.listen()
            abstract.bind(f"\0{shared.name}")
            abstract.listen()
            datagrams.bind(str(shared / "datagrams"))
            attacks = [
                Try("read", str(secret)),
                Try("write", str(secret)),
                Try("make", str(shared / "new")),
                Try("list", str(shared)),
                Try("environment", victim),
                Try("command line", victim),
                Try("connect", machine.getsockname()[1]),
                Try("service", str(shared / "service")),
                Try("abstract service", shared.name),
                Try("sendto", str(shared / "datagrams")),
                Try("sendmsg", str(shared / "datagrams")),
                Try("open to all", str(secret)),
                Try("empty", str(secret)),
                Try("fork"),
                Try("limit", victim),
            ]
            ptrace = [Try("memory", victim), Try("seize", victim), Try("peek", victim), Try("io_uring")]
            scoped = [Try("signal", victim)] if landlock.abi() >= 6 else []
            try:
                with started(all_layers) as keeper:
                    assert keeper.sandbox == "network+files+calls"
                    refused = got(keeper, attacks + ptrace + scoped)
                    assert [one for one, success in refused.items() if success] == []
                    assert secret.read_text() == "token"
                with started("off") as keeper:
                    # The other four may be forbidden on this machine anyway.
                    allowed = got(keeper, attacks + scoped)
                    assert [one for one, success in allowed.items() if not success] == []
            finally:
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)

    in_a_fork(body, user)


def test_a_shut_in_server_has_what_it_needs(shared: Path, all_layers: str, user: int | None) -> None:
    def body() -> None:
        (shared / "library").mkdir()
        (shared / "library/libx.so").touch()
        (shared / "server").mkdir()
        (shared / "server/beside").touch()
        (shared / "elsewhere").touch()
        (shared / "server/link").symlink_to(shared / "elsewhere")
        needs = [
            Try("read", "/proc/cpuinfo"),
            Try("read", "/proc/self/maps"),
            Try("list", "/proc/self/task"),
            Try("read", "/sys/devices/system/cpu/online"),
            Try("write", "/dev/null"),
            Try("name a thread"),
            Try("listen"),
            Try("read", str(shared / "library/libx.so")),
            Try("read", str(shared / "server/link")),
            Try("list", str(shared / "server")),
            Try("read", "beside"),
        ]
        with started(all_layers) as keeper:
            found = got(keeper, needs, shared / "server", LD_LIBRARY_PATH=str(shared / "library"))
            assert [one for one, success in found.items() if not success] == []

    in_a_fork(body, user)


def test_root_keeps_one_capability_and_a_user_none(all_layers: str, user: int | None) -> None:
    def body() -> None:
        with started(all_layers) as keeper:
            one = Try("capabilities")
            assert got(keeper, [one])[one] == ("0000000000000002" if os.geteuid() == 0 else "0000000000000000")

    in_a_fork(body, user)


def test_memory_that_runs_short_takes_nothing_from_the_server(all_layers: str) -> None:
    """The kernel then forgets what it knew of /proc, which rules are about."""
    drop = Path("/proc/sys/vm/drop_caches")
    if os.geteuid() != 0 or not os.access(drop, os.W_OK):
        pytest.skip("needs root, to have the kernel forget")
    script = ": >/proc/self/task/$$/comm && read -r _ </proc/cpuinfo && read -r _ </proc/$$/stat && echo fine"
    with started(all_layers) as keeper:
        child = keeper.spawn(shell(f"trap go=1 USR1; echo ready; until [ $go ]; do :; done; {script}"))
        assert os.read(child.output, 100) == b"ready\n"
        drop.write_text("2")
        os.kill(child.pid, signal.SIGUSR1)
        assert "fine" in read_all(child)


def test_a_driver_that_needs_more_makes_auto_give_way_once_and_loudly(
    shared: Path, all_layers: str, rpc_server: ServerCommand, caplog: pytest.LogCaptureFixture
) -> None:
    (shared / "driver").touch()
    needy = shell(f": <{shared}/driver && exec sleep 1000")
    with started("auto") as keeper:
        assert keeper.spawn(needy).wait(HANG_GUARD) == 1
        child = keeper.spawn(needy)
        assert child.wait(0.5) is None
        assert keeper.sandbox == "network"
        assert "THE SANDBOX GIVES WAY, once: rpc-server ended with exit status 1" in caplog.text
        keeper.kill(child)
    with started("on") as keeper:
        for _ in range(3):
            assert keeper.spawn(needy).wait(HANG_GUARD) == 1
        assert keeper.sandbox == "network+files+calls"


def test_a_server_that_fails_anyway_brings_the_sandbox_back(all_layers: str) -> None:
    with started("auto") as keeper:
        seen = []
        for _ in range(4):
            assert keeper.spawn(shell("exit 3")).wait(HANG_GUARD) == 3
            seen.append(keeper.sandbox)
        assert seen == ["network+files+calls", "network", "network+files+calls", "network+files+calls"]


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("kill -9 $$", -signal.SIGKILL)])
def test_an_end_that_no_driver_brings_about_is_no_reason_to_give_way(all_layers: str, script: str, status: int) -> None:
    """A port that is taken, memory that runs out: others can bring these about."""
    with started("auto") as keeper:
        for _ in range(3):
            assert keeper.spawn(shell(script)).wait(HANG_GUARD) == status
            assert keeper.sandbox == "network+files+calls"
        keeper.spawn(shell("exit 3")).wait(HANG_GUARD)
        seen = []
        for _ in range(2):
            keeper.spawn(shell(script)).wait(HANG_GUARD)
            seen.append(keeper.sandbox)
        assert seen == ["network", "network+files+calls"]


def test_the_sandbox_never_gives_way_once_a_server_was_reached(rpc_server: ServerCommand, all_layers: str) -> None:
    """Or who takes a server over would only have to make the next start fail."""
    with started("auto") as keeper:
        child = keeper.spawn(rpc_server)
        assert says_hello(dial(keeper, child))
        os.kill(child.pid, signal.SIGKILL)
        child.wait(HANG_GUARD)
        for _ in range(3):
            assert keeper.spawn(shell("exit 3")).wait(HANG_GUARD) == 3
            assert keeper.sandbox == "network+files+calls"


def test_a_kernel_without_landlock(all_layers: str, caplog: pytest.LogCaptureFixture) -> None:
    """As an old one, or a container's filter: `auto` says what is missing, `on` refuses with the reason."""

    def body() -> None:
        refuse_landlock()
        with pytest.raises(WorkerError, match="files of its own: Landlock: Operation not permitted") as refused:
            start_keeper("on")
        assert "5.13" in refused.value.hint
        with started("auto") as keeper:
            assert keeper.sandbox == "network+calls"
            assert keeper.spawn(shell("exit 0")).wait(HANG_GUARD) == 0
        assert "has not files of its own: Landlock: Operation not permitted" in caplog.text

    in_a_fork(body)


def refuse_landlock() -> None:
    """Have the kernel refuse Landlock's first call to this process, as a container's filter does."""
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: needed where we are no root
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, 444), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HP", len(steps), ctypes.addressof(buffer)))
    assert ctypes.CDLL(None).prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


def test_a_machine_that_forbids_namespaces(rpc_server: ServerCommand) -> None:
    """As in a container: `auto` serves and tells why there is no sandbox, `on` refuses with the reason."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give up what makes a namespace")

    def body() -> None:
        libc = ctypes.CDLL(None)
        for capability in range(64):  # those that the kernel does not know fail
            libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
        assert libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)) == 0  # version 3, ourselves, none
        with pytest.raises(WorkerError, match="unshare: Operation not permitted") as refused:
            start_keeper("on")
        assert "--sandbox off" in refused.value.hint
        with started("auto") as keeper:
            assert keeper.missing[Layer.NETWORK] == "unshare: Operation not permitted"
            for _ in range(3):  # others reach its port, so they can make it end: no reason to give way
                assert keeper.spawn(shell("exit 3")).wait(HANG_GUARD) == 3
                assert keeper.sandbox == "files+calls"
            assert says_hello(dial(keeper, keeper.spawn(rpc_server)))

    in_a_fork(body)


def test_a_port_that_a_stranger_holds_is_never_taken_for_ours() -> None:
    with started("off") as keeper, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        child = keeper.spawn(shell("exec sleep 1000"), port)
        with socket.create_server(("127.0.0.1", port)) as stranger:
            with pytest.raises(ConnectionRefusedError, match="not rpc-server's"):
                keeper.dial(child, HANG_GUARD)
            stranger.settimeout(HANG_GUARD)
            with stranger.accept()[0] as refused:
                refused.settimeout(HANG_GUARD)
                assert refused.recv(100) == b""


def test_a_process_beside_the_server_is_never_taken_for_it(sandbox: str) -> None:
    """In its own network too, where the filter of calls has given way."""
    with started("auto") as keeper:
        assert keeper.spawn(shell("exit 3")).wait(HANG_GUARD) == 3
        argv = [sys.executable, "-c", BESIDE, "stand-in"]
        child = keeper.spawn(ServerCommand(argv, {"PATH": os.defpath}, Path("/")))
        assert keeper.sandbox == "network"
        assert os.read(child.output, 100) == b"listening\n"
        with pytest.raises(ConnectionRefusedError, match="not rpc-server's"):
            keeper.dial(child, HANG_GUARD)


def left_behind(child: Child) -> int:
    """Where the process is that `LEAVE_BEHIND` has started."""
    pid = int(os.read(child.output, 100))
    assert wait_until(lambda: os.getsid(pid) == pid), "it never hid in a session of its own"
    return pid


def test_nothing_that_a_server_started_outlives_it() -> None:
    """Without the filter of calls: in a session of its own, its parent gone."""
    with started("off") as keeper:
        child = keeper.spawn(shell(f"{LEAVE_BEHIND}; exec sleep 1000"))
        pid = left_behind(child)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(HANG_GUARD) == -signal.SIGKILL
        assert is_gone(pid), "its end was told before all of it had ended"
        child = keeper.spawn(shell(f"{LEAVE_BEHIND}; exec sleep 1000"))
        pid = left_behind(child)
    assert is_gone(pid), "it outlived the keeper"


def test_a_port_that_is_taken_is_an_error_before_the_start() -> None:
    with (
        started("off") as keeper,
        socket.create_server(("127.0.0.1", 0)) as holder,
        pytest.raises(OSError, match="in use"),
    ):
        keeper.spawn(shell("exec sleep 1000"), holder.getsockname()[1])


def test_a_user_cannot_move_the_server_elsewhere(rpc_server: ServerCommand) -> None:
    """Arguments carried over from `llama-cpp-rpc` must not open the server to the network."""
    elsewhere = ServerCommand([*rpc_server.argv, "--host", "0.0.0.0", "-p", "1"], rpc_server.env, rpc_server.cwd)
    with started("off") as keeper:
        child = keeper.spawn(elsewhere)
        assert says_hello(dial(keeper, child))
        keeper.kill(child)
        assert f"127.0.0.1:{child.port}" in read_all(child)


@pytest.mark.parametrize("kind", ["auto", "off"])
@pytest.mark.parametrize("victim", ["launcher", "keeper"])
def test_no_server_outlives_its_launcher_or_its_keeper(
    rpc_server: ServerCommand, user: int | None, kind: str, victim: str
) -> None:
    in_a_fork(lambda: must_be_able_to_run(rpc_server), user)
    told, tell = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        with suppress(BaseException):
            become(user)
            keeper = start_keeper(kind)
            child = keeper.spawn(rpc_server)
            dial(keeper, child).close()
            os.write(tell, json.dumps([keeper._pid, child.pid, child.port]).encode())
            time.sleep(HANG_GUARD)
        os._exit(1)
    os.close(tell)
    with os.fdopen(told) as reading:
        keeper_pid, server_pid, port = json.loads(os.read(reading.fileno(), 100))
    assert not is_gone(server_pid)
    try:
        os.kill(launcher if victim == "launcher" else keeper_pid, signal.SIGKILL)
        assert wait_until(lambda: is_gone(keeper_pid)), "the keeper is still there"
        assert wait_until(lambda: is_gone(server_pid)), "the server is still there"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), HANG_GUARD)
    finally:
        os.kill(launcher, signal.SIGKILL)
        os.waitpid(launcher, 0)


def test_the_loss_of_the_keeper_is_noticed_by_all_who_wait(rpc_server: ServerCommand) -> None:
    with started("auto") as keeper:
        child = keeper.spawn(rpc_server)
        dial(keeper, child).close()
        os.kill(keeper._pid, signal.SIGKILL)
        with pytest.raises(KeeperLost):
            child.wait(HANG_GUARD)
        with pytest.raises(KeeperLost):
            keeper.dial(child, HANG_GUARD)
        with pytest.raises(KeeperLost):
            keeper.spawn(rpc_server)


def test_closing_ends_the_server_and_may_be_done_twice(rpc_server: ServerCommand) -> None:
    keeper = start_keeper("auto")
    child = keeper.spawn(rpc_server)
    dial(keeper, child).close()
    keeper.close()
    keeper.close()
    assert is_gone(child.pid)
    assert is_gone(keeper._pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_the_terminals_group_leaves_the_server_to_the_launcher(
    rpc_server: ServerCommand, number: signal.Signals
) -> None:
    """Ctrl-C reaches every process of the foreground; the launcher must be able to drain first."""

    def body() -> None:
        os.setpgid(0, 0)
        heard = []
        signal.signal(number, signal.SIG_DFL)  # pytest's own would be inherited
        with started("auto") as keeper:
            signal.signal(number, lambda *_: heard.append(number))
            child = keeper.spawn(rpc_server)
            dial(keeper, child).close()
            os.killpg(0, number)
            os.kill(keeper._pid, number)  # as `pkill worker` and a stop of the whole control group do
            assert heard == [number]
            assert says_hello(keeper.dial(child, HANG_GUARD))

    in_a_fork(body)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -SEGV $$", -signal.SIGSEGV), ("kill -9 $$", -9)]
)
def test_how_the_server_ended_is_told(script: str, status: int) -> None:
    with started("auto") as keeper:
        child = keeper.spawn(shell(f"echo on stdout; echo on stderr >&2; {script}"))
        assert child.wait(HANG_GUARD) == status
        assert child.wait(0) == status  # as often as one asks
        assert read_all(child) == "on stdout\non stderr\n"


def test_the_server_is_killed_when_it_will_not_go() -> None:
    with started("off") as keeper:  # within, bash could not start `sleep`
        child = keeper.spawn(shell("trap '' TERM; echo ready; while :; do sleep 0.05; done"))
        assert os.read(child.output, 100) == b"ready\n"
        assert child.wait(0.1) is None
        keeper.kill(child)
        assert child.wait(0) == -signal.SIGKILL
        keeper.kill(child)  # nothing left to do


def test_one_server_at_a_time_and_another_after_it() -> None:
    with started("auto") as keeper:
        first = keeper.spawn(shell("exec sleep 1000"))
        with pytest.raises(OSError, match="already"):
            keeper.spawn(shell("exit 0"))
        keeper.kill(first)
        second = keeper.spawn(shell("exec sleep 1000"))
        keeper.kill(first)
        assert second.wait(0) is None


def test_a_program_that_cannot_be_run_is_an_error_and_no_end_of_the_keeper(tmp_path: Path) -> None:
    (tmp_path / "plain").touch(mode=0o644)
    (tmp_path / "empty").touch(mode=0o755)
    names = {"absent": errno.ENOENT, "plain": errno.EACCES, "empty": errno.ENOEXEC}
    with started("auto") as keeper:
        for name, code in names.items():
            with pytest.raises(OSError) as refused:
                keeper.spawn(ServerCommand([str(tmp_path / name)], {}, tmp_path))
            assert refused.value.errno == code
        assert keeper.spawn(shell("exit 5")).wait(HANG_GUARD) == 5


def test_the_server_gets_exactly_what_it_was_given() -> None:
    """Arguments and environment to the byte, however long; no descriptor, no terminal, no signal blocked."""
    odd = "a b\t\"'\n\u00fc\udcff"
    arguments = [odd, "", *["x" * 1000] * 300]
    script = (
        'printf "%s\\0" "$@"; while IFS= read -rd "" one; do echo "$one"; done </proc/$$/environ; '
        'while read -r one; do echo "$one"; done; pwd -P; '
        "for n in {3..99}; do [ -e /proc/$$/fd/$n ] && echo descriptor $n; done; "
        "exec grep -e SigIgn -e SigBlk /proc/self/status"
    )
    with started("auto") as keeper:
        command = ServerCommand(
            ["/bin/bash", "-c", script, "stand-in", *arguments], {"GIVEN": odd, "HOME": "/dev/null"}, Path("/usr")
        )
        child = keeper.spawn(command)
        output = read_all(child)
        assert child.wait(HANG_GUARD) == 0
    words, _, rest = output.rpartition("\0")
    assert words.split("\0") == [*arguments, "--host", "127.0.0.1", "--port", str(child.port)]
    given = f"GIVEN={odd}\nHOME=/dev/null\n"
    assert rest.startswith(given)
    assert rest.removeprefix(given).splitlines() == [
        "/usr",
        "SigBlk:\t0000000000000000",
        f"SigIgn:\t{1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1:016x}",
    ]


def test_a_client_that_goes_before_its_answer_leaves_the_server_alive(rpc_server: ServerCommand) -> None:
    """A killed head, or a check that ran out of time: rpc-server as it is dies of SIGPIPE."""
    with started("auto") as keeper:
        child = keeper.spawn(rpc_server)
        dial(keeper, child).close()
        os.kill(child.pid, signal.SIGSTOP)  # as if it were computing
        with keeper.dial(child, HANG_GUARD) as impatient:
            impatient.sendall(HELLO)
        os.kill(child.pid, signal.SIGCONT)
        assert says_hello(keeper.dial(child, HANG_GUARD))
        assert child.wait(0) is None


def test_two_dial_at_once(rpc_server: ServerCommand) -> None:
    answers: list[bool] = []

    with started("auto") as keeper:
        child = keeper.spawn(rpc_server)
        dial(keeper, child).close()

        def dial_ten_times() -> None:
            for _ in range(10):
                answers.append(says_hello(keeper.dial(child, HANG_GUARD)))

        threads = [threading.Thread(target=dial_ten_times) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(HANG_GUARD)
    assert answers == [True] * 20


def test_no_descriptor_is_lost_over_dials_and_restarts(rpc_server: ServerCommand) -> None:
    def run_once(keeper: Keeper) -> None:
        child = keeper.spawn(rpc_server)
        assert says_hello(dial(keeper, child))
        for _ in range(4):
            assert says_hello(keeper.dial(child, HANG_GUARD))
        keeper.kill(child)
        with pytest.raises(ConnectionRefusedError):
            keeper.dial(child, HANG_GUARD)
        read_all(child)
        with pytest.raises(FileNotFoundError):
            keeper.spawn(ServerCommand(["/nonexistent-program"], {}, Path("/")))

    with started("auto") as keeper:
        run_once(keeper)
        gc.collect()  # what other tests left
        before = descriptors(os.getpid()), descriptors(keeper._pid)
        for _ in range(10):
            run_once(keeper)
        assert wait_until(lambda: (descriptors(os.getpid()), descriptors(keeper._pid)) == before)


def test_the_keeper_holds_nothing_of_the_launchers() -> None:
    """A lock, a listener or a pipe held by the keeper would outlive the launcher's closing it."""
    reading, writing = os.pipe()
    with started("auto"):
        os.close(writing)
        assert select.select([reading], [], [], HANG_GUARD)[0], "somebody else holds the pipe open"
    os.close(reading)


def test_a_full_table_of_descriptors_is_survived(rpc_server: ServerCommand) -> None:
    def body() -> None:
        with started("auto") as keeper:
            child = keeper.spawn(rpc_server)
            dial(keeper, child).close()
            hoard: list[int] = []
            limit = max(map(int, os.listdir("/proc/self/fd"))) + 16
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            with suppress(OSError):
                while True:
                    hoard.append(os.open(os.devnull, os.O_RDONLY))
            with pytest.raises(OSError) as refused:
                keeper.dial(child, HANG_GUARD)
            assert refused.value.errno == errno.EMFILE
            for descriptor in hoard:
                os.close(descriptor)
            assert says_hello(keeper.dial(child, HANG_GUARD))

    in_a_fork(body)
