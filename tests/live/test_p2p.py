"""Goal: two and more machines with one token become a cluster; nobody else gets in; what is restarted is known again.

Every machine is a network namespace; worker, head and llama.cpp are the real programs. What breaks: tests/faults/.
"""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import shutil
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.live.lan import Host, lan, missing
from tests.live.support import (
    children,
    end,
    free_port,
    generate,
    greedy,
    hidden_environment,
    serving,
    wait_for_hello,
)

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")

LIMIT = 60.0
"""Seconds: a guard against hanging."""


HOST_NAME = "unmistakable-host"
NAMED = ["unshare", "-u", "sh", "-c", f'hostname {HOST_NAME} && exec "$@"', "sh"]
"""Runs a program on a machine with a name that can be searched for."""


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Host]]:
    """Five machines: workers on the first ones, heads on the last ones."""
    with lan(5) as made:
        yield made


@dataclass
class Program:
    """A running `worker ...`, and what it has said on stderr so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def says(self, pattern: str, after: int = 0) -> int:
        """Wait until a line behind the first `after` ones matches; the number of lines up to it."""
        deadline = time.monotonic() + LIMIT
        seen = after
        with self._news:
            while True:
                for number, line in enumerate(self.lines[seen:], seen + 1):
                    if re.search(pattern, line):
                        return number
                seen = len(self.lines)
                ended = self.process.poll() is not None and not self._reader.is_alive()
                assert not ended, f"it ended without saying {pattern!r}:\n{self.log}"
                assert self._news.wait(max(0.0, deadline - time.monotonic())), f"no {pattern!r} in:\n{self.log}"

    def stdout_line(self) -> str:
        """The next line of stdout."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT)


@dataclass(frozen=True)
class Cluster:
    """The program, its token, and directories of this test's own."""

    binary: Path
    token: str
    scratch: Path

    def env(self, where: str, token: str | None = None) -> dict[str, str]:
        home = self.scratch / where
        home.mkdir(exist_ok=True)
        return hidden_environment(
            HOME=str(home),
            TMPDIR=str(home),
            # One directory for all: the workers of a test share what is unpacked.
            BACKEND_ASSETS_PATH=str(self.scratch / "assets"),
            LOCALAI_TOKEN=self.token if token is None else token,
        )

    @contextmanager
    def run(self, host: Host, *words: str | Path, where: str = "", token: str | None = None) -> Iterator[Program]:
        process = subprocess.Popen(
            host.command([*NAMED, self.binary, *words]),
            env=self.env(where or host.namespace, token),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        program = Program(process)
        try:
            yield program
        finally:
            end(process)
            program._reader.join(5)
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.close()
            process.stderr.close()

    @contextmanager
    def worker(self, host: Host, *flags: str, where: str = "", token: str | None = None) -> Iterator[Program]:
        """A worker that is ready."""
        with self.run(host, "p2p-llama-cpp-rpc", *flags, where=where, token=token) as program:
            program.says(r"ready, RPC protocol 7\.0\.0")
            yield program

    def finish(
        self, host: Host, *words: str | Path, token: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A command that ends by itself."""
        return subprocess.run(
            host.command([*NAMED, self.binary, *words]),
            env=self.env("head" + host.namespace, token),
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # a random model's text
            timeout=timeout,
            check=False,
        )

    def listed(self, host: Host, *flags: str) -> list[dict[str, Any]]:
        """`worker list --json`"""
        result = self.finish(host, "list", "--json", *flags)
        assert result.stdout, result.stderr
        workers: list[dict[str, Any]] = json.loads(result.stdout)
        return workers


@pytest.fixture
def cluster(binary: Path, tmp_path: Path) -> Cluster:
    token = subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    return Cluster(binary, token, Path(os.path.realpath(tmp_path)))


def completion(clients: Path, model: Path) -> list[str | Path]:
    """Greedy tokens with every layer on the workers, as a command of `connect`."""
    return greedy(clients, model, "{rpc}")


def benchmark(clients: Path, model: Path, rpc: str) -> list[str | Path]:
    """A short llama-bench."""
    command: list[str | Path] = [clients / "llama-bench", "-m", model, "--rpc", rpc, "-ngl", "99"]
    return [*command, "-p", "16", "-n", "8", "-r", "1"]


def chat_server(clients: Path, model: Path) -> list[str | Path]:
    """llama-server on port 8080, as a command of `connect`."""
    command: list[str | Path] = [clients / "llama-server", "-m", model, "--rpc", "{rpc}", "-ngl", "99"]
    return [*command, "--port", "8080", "-c", "256"]


@pytest.fixture(scope="module")
def expected(tree: Path, clients: Path, tiny_model: Path) -> str:
    """What the bare server makes of the same prompt."""
    port = free_port()
    env = hidden_environment()
    with serving([tree / "backend-assets/util/llama-cpp-rpc-server", "-p", str(port)], port, env):
        return generate(clients, tiny_model, f"127.0.0.1:{port}")


def test_two_machines_with_one_token(
    cluster: Cluster, hosts: list[Host], clients: Path, tiny_model: Path, expected: str
) -> None:
    with cluster.worker(hosts[0]):
        result = cluster.finish(hosts[3], "connect", "--", *completion(clients, tiny_model))
        assert result.returncode == 0, result.stderr
        assert result.stdout == expected
        bench = benchmark(clients, tiny_model, "{rpc}")
        result = cluster.finish(hosts[3], "connect", "--", *bench, "-o", "json")
        assert result.returncode == 0, result.stderr
        assert all("RPC" in row["backends"] for row in json.loads(result.stdout))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_model_split_over_several_machines(
    cluster: Cluster, hosts: list[Host], clients: Path, tiny_model: Path, tree: Path, count: int
) -> None:
    # Against as many bare servers: where a layer is computed may change the last bit of a sum.
    env = hidden_environment()
    ports = [free_port() for _ in range(count)]
    bare = tree / "backend-assets/util/llama-cpp-rpc-server"
    servers = [subprocess.Popen([bare, "-p", str(port)], env=env, stdout=subprocess.DEVNULL) for port in ports]
    try:
        for port, server in zip(ports, servers, strict=True):
            wait_for_hello(port, server)
        reference = generate(clients, tiny_model, ",".join(f"127.0.0.1:{port}" for port in ports))
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    with ExitStack() as stack:
        for host in hosts[:count]:
            stack.enter_context(cluster.worker(host))
        result = cluster.finish(hosts[4], "connect", "--workers", str(count), "--", *completion(clients, tiny_model))
    assert result.returncode == 0, result.stderr
    assert result.stdout == reference


def test_the_one_line_and_what_a_command_is_told(cluster: Cluster, hosts: list[Host]) -> None:
    with cluster.worker(hosts[0]), cluster.worker(hosts[1]):
        with cluster.run(hosts[3], "connect", "--workers", "2") as head:
            assert head.stdout_line() == "127.0.0.1:26001,127.0.0.1:26002"
            assert head.process.poll() is None, "it does not keep the tunnels up"
            assert head.end() == 0
        script = 'echo "$LLAMA_ARG_RPC $LLAMACPP_GRPC_SERVERS $1"; exit 7'
        result = cluster.finish(hosts[3], "connect", "--workers", "2", "--", "sh", "-c", script, "sh", "x={rpc}")
        line = "127.0.0.1:26001,127.0.0.1:26002"
        assert (result.returncode, result.stdout) == (7, f"{line} {line} x={line}\n")
        result = cluster.finish(hosts[3], "connect", "--", "/nonexistent/program")
        assert result.returncode == 1
        assert "error: " in result.stderr
        assert "/nonexistent/program" in result.stderr


def test_static_peers_alone_do_everything(
    cluster: Cluster, hosts: list[Host], clients: Path, tiny_model: Path, expected: str
) -> None:
    with cluster.worker(hosts[0], "--no-mdns"):
        assert cluster.finish(hosts[3], "list", "--timeout", "2").returncode == 6
        for peer in (hosts[0].address, f"[{hosts[0].address6}]:25052"):
            flags = ["connect", "--no-mdns", "--peer", peer]
            result = cluster.finish(hosts[3], *flags, "--", *completion(clients, tiny_model))
            assert result.returncode == 0, result.stderr
            assert result.stdout == expected


def test_a_wrong_token_and_another_network_id(cluster: Cluster, hosts: list[Host]) -> None:
    other = subprocess.run([cluster.binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    with cluster.worker(hosts[0]):
        for flags, token in (((), other), (("--network-id", "lab"), cluster.token)):
            unseen = cluster.finish(hosts[3], "list", "--timeout", "2", *flags, token=token)
            assert unseen.returncode == 6, unseen.stderr
            for command in ("list", "connect"):
                told = cluster.finish(
                    hosts[3], command, "--timeout", "3", "--no-mdns", "--peer", hosts[0].address, *flags, token=token
                )
                assert told.returncode == 5, told.stderr
                assert "token refused" in told.stderr
                assert token not in told.stderr


def test_the_list_tells_everything(cluster: Cluster, hosts: list[Host]) -> None:
    with cluster.worker(hosts[0], "--name", "left"), cluster.worker(hosts[1], "--name", "right", "--no-mdns"):
        left, right = cluster.listed(hosts[3], "--peer", hosts[1].address)
        # A peer that was named stands before one that was found.
        assert (left["name"], right["name"]) == ("right", "left")
        assert (left["found"], right["found"]) == ("peer", "mdns")
        for worker in (left, right):
            assert worker["state"] == "ready"
            assert worker["rpc"] == "7.0.0"
            assert worker["problem"] is None
            assert worker["llama_cpp_commit"]
            (device,) = worker["devices"]
            assert device["name"] == "CPU"
            assert 0 < device["free"] <= device["total"]


def test_a_second_head_is_told_who_is_in_the_way_and_served_afterwards(
    cluster: Cluster, hosts: list[Host], clients: Path, tiny_model: Path, expected: str
) -> None:
    with cluster.worker(hosts[0]):
        server = chat_server(clients, tiny_model)
        with cluster.run(hosts[3], "connect", "--", *server) as first:
            _wait_for_port(hosts[3], 8080)
            (worker,) = cluster.listed(hosts[4])
            assert worker["state"] == "busy"
            assert worker["holder"] == HOST_NAME
            refused = cluster.finish(hosts[4], "connect", "--timeout", "3", "--", "true")
            assert refused.returncode == 6
            assert "busy" in refused.stderr
            assert HOST_NAME in refused.stderr
            assert _ask_llama_server(hosts[3]), "the first head was disturbed"
            first.end()
        result = cluster.finish(hosts[4], "connect", "--", *completion(clients, tiny_model))
        assert (result.returncode, result.stdout) == (0, expected), result.stderr


def test_the_lease_against_real_clients(
    cluster: Cluster, hosts: list[Host], clients: Path, tiny_model: Path, expected: str
) -> None:
    """Clients come and go many times while another head keeps asking: never a refusal for the first."""
    with cluster.worker(hosts[0]), cluster.run(hosts[3], "connect") as first:
        rpc = first.stdout_line()
        stop = threading.Event()
        refusals = []

        def ask() -> None:
            while not stop.is_set():
                result = cluster.finish(hosts[4], "connect", "--timeout", "1", "--", "true")
                refusals.append(result.returncode)

        outputs = []
        command: list[str | Path] = [str(word).replace("{rpc}", rpc) for word in completion(clients, tiny_model)]
        chat: list[str | Path] = [clients / "llama-cli", "-m", tiny_model, "--rpc", rpc, "-ngl", "99", "-c", "256"]
        chat += ["-p", "The quick brown fox", "-n", "8", "--single-turn", "--simple-io", "--no-warmup"]
        text: list[str | Path] = [clients / "llama-completion", *chat[1:-3], "-no-cnv", "--no-warmup"]
        others = [chat, text, benchmark(clients, tiny_model, rpc)]
        serve = [str(word).replace("{rpc}", rpc) for word in chat_server(clients, tiny_model)]
        subprocess.run(hosts[3].command(command), capture_output=True, timeout=LIMIT, check=True)
        asking = threading.Thread(target=ask)
        asking.start()
        try:
            for _ in range(3):
                run = subprocess.run(hosts[3].command(command), capture_output=True, timeout=LIMIT, check=True)
                outputs.append(run.stdout.decode(errors="replace"))
                for other in others:
                    client = hosts[3].command(other)
                    subprocess.run(client, stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT, check=True)
                server = subprocess.Popen(hosts[3].command(serve), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                _wait_for_port(hosts[3], 8080)
                assert _ask_llama_server(hosts[3]).strip() == "8"
                server.terminate()
                server.wait(LIMIT)
        finally:
            stop.set()
            asking.join()
        assert outputs == [expected] * 3
        assert refusals
        assert set(refusals) == {6}, "the second head got in between"


def test_a_server_that_never_starts_is_given_up_with_its_last_lines(cluster: Cluster, hosts: list[Host]) -> None:
    blocked = cluster.scratch / hosts[0].namespace
    blocked.mkdir()
    (blocked / ".cache").write_text("a file where the cache directory should be")
    result = subprocess.run(
        hosts[0].command([cluster.binary, "p2p-llama-cpp-rpc", "--llama-cpp-args", "-c"]),
        env=cluster.env(hosts[0].namespace),
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert result.returncode == 7, result.stderr
    assert "error: rpc-server keeps crashing" in result.stderr
    assert "Failed to create cache directory" in result.stderr
    assert "hint: " in result.stderr


def test_a_restarted_worker_keeps_its_id_and_its_port(cluster: Cluster, hosts: list[Host]) -> None:
    with cluster.worker(hosts[1], "--name", "b"), cluster.run(hosts[3], "connect", "--workers", "2") as head:
        with cluster.worker(hosts[0], "--name", "a"):
            assert head.stdout_line() == "127.0.0.1:26001,127.0.0.1:26002"
            before = {worker["name"]: worker["id"] for worker in cluster.listed(hosts[4])}
        seen = head.says(r"lost: a\b")
        with cluster.worker(hosts[0], "--name", "a"):
            head.says(r"back: a\b", seen)
            assert _hello_through(hosts[3], 26001) == "7.0.0"
            assert {worker["name"]: worker["id"] for worker in cluster.listed(hosts[4])} == before


def test_two_instances_and_a_cloned_image_are_kept_apart(cluster: Cluster, hosts: list[Host]) -> None:
    flags = ["--instance", "gpu1", "--listen", "[::]:25053", "--name", "second"]
    with cluster.worker(hosts[0], "--name", "first"), cluster.worker(hosts[0], *flags):
        state = cluster.scratch / hosts[0].namespace / ".local/state"
        shutil.copytree(state, cluster.scratch / "clone" / ".local/state")
        with cluster.worker(hosts[1], "--name", "clone", where="clone"):
            listed = cluster.listed(hosts[3])
            assert sorted(str(worker["name"]) for worker in listed) == ["clone", "first", "second"]
            ids = {str(worker["name"]): worker["id"] for worker in listed}
            assert ids["clone"] == ids["first"] != ids["second"]
            with cluster.run(hosts[3], "connect", "--workers", "3") as head:
                assert head.stdout_line().count(",") == 2
                head.says("same id|one id|cloned")


def test_a_token_is_changed_without_a_flag_day(cluster: Cluster, hosts: list[Host]) -> None:
    new = subprocess.run([cluster.binary, "token"], capture_output=True, text=True, check=True).stdout.strip()
    file = cluster.scratch / "tokens"
    for content, works, refused in (
        (f"{new}\n{cluster.token}\n", [new, cluster.token], []),
        (f"{new}\n", [new], [cluster.token]),
    ):
        file.write_text(content)
        file.chmod(0o600)
        with cluster.worker(hosts[0], "--token-file", str(file), token=""):
            for token in works:
                for how in ((), ("--no-mdns", "--peer", hosts[0].address)):
                    assert cluster.finish(hosts[3], "connect", *how, "--", "true", token=token).returncode == 0
            for token in refused:
                flags = ["--timeout", "3", "--no-mdns", "--peer", hosts[0].address]
                assert cluster.finish(hosts[3], "connect", *flags, "--", "true", token=token).returncode == 5


def test_a_localai_token_works_on_both_sides(cluster: Cluster, hosts: list[Host]) -> None:
    def key() -> str:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(43))

    otp = "".join(f"  {part}:\n    interval: 360\n    key: {key()}\n    length: 43\n" for part in ("dht", "crypto"))
    yaml = f"otp:\n{otp}room: {key()}\nrendezvous: {key()}\nmdns: {key()}\nmax_message_size: 20971520\n"
    token = base64.b64encode(yaml.encode()).decode()
    with cluster.worker(hosts[0], token=token):
        assert cluster.finish(hosts[3], "connect", "--", "true", token=token).returncode == 0
        other = cluster.finish(hosts[3], "connect", "--timeout", "2", "--", "true")
        assert other.returncode == 6


def test_a_runner_of_the_users_own(
    cluster: Cluster, hosts: list[Host], clients: Path, tiny_model: Path, tree: Path, expected: str
) -> None:
    with cluster.run(hosts[0], "p2p-llama-cpp-rpc", "--no-runner", "--runner-port", "50099") as worker:
        worker.says("You need to start llama-cpp-rpc-server on '127.0.0.1:50099'")
        bare = tree / "backend-assets/util/llama-cpp-rpc-server"
        server = subprocess.Popen(hosts[0].command([bare, "-p", "50099"]), stdout=subprocess.DEVNULL)
        try:
            worker.says("ready, RPC protocol")
            result = cluster.finish(hosts[3], "connect", "--", *completion(clients, tiny_model))
            assert (result.returncode, result.stdout) == (0, expected), result.stderr
        finally:
            server.kill()
            server.wait()


def test_the_server_is_out_of_reach_and_the_wire_tells_nothing(
    cluster: Cluster, hosts: list[Host], clients: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with cluster.worker(hosts[0]) as worker:
        environment = Path(f"/proc/{_server_of(worker)}/environ").read_bytes()
        assert cluster.token.encode() not in environment
        assert _network_of(_server_of(worker)) != _network_of(worker.process.pid)
        capture = tmp_path / "capture"
        script = (
            "import socket, sys\n"
            "raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)); raw.bind(('eth0', 3))\n"
            "print('on', flush=True)\n"
            "with open(sys.argv[1], 'wb') as out:\n"
            "    while True: out.write(raw.recv(65535)); out.flush()\n"
        )
        tap = subprocess.Popen(
            hosts[3].command([sys.executable, "-c", script, capture]), stdout=subprocess.PIPE, text=True
        )
        assert tap.stdout is not None
        tap.stdout.readline()
        result = cluster.finish(hosts[3], "connect", "--", *completion(clients, tiny_model))
        assert result.returncode == 0, result.stderr
        time.sleep(0.5)
        tap.kill()
        tap.communicate()
        seen = capture.read_bytes()
        assert b"_llamarpc" in seen, "mDNS was not captured: this test could not fail"
        for secret in (cluster.token, cluster.token[8:40], HOST_NAME, "blk.0.attn", "token_embd", '"hello"'):
            assert secret.encode() not in seen, f"{secret!r} crossed the wire"
        for log in (worker.log, result.stderr):
            assert cluster.token not in log


def _network_of(pid: int) -> Path:
    return Path(f"/proc/{pid}/ns/net").readlink()


def _descendants(pid: int) -> list[int]:
    found = []
    pending = [pid]
    while pending:
        pending += (below := children(pending.pop()))
        found += below
    return found


def _server_of(worker: Program) -> int:
    """The rpc-server of a worker."""
    for pid in _descendants(worker.process.pid):
        if Path(f"/proc/{pid}/exe").readlink().name == "llama-cpp-rpc-server":
            return pid
    raise AssertionError("there is no server")


def _wait_for_port(host: Host, port: int) -> None:
    script = (
        "import socket, sys, time\n"
        f"deadline = time.monotonic() + {LIMIT}\n"
        "while time.monotonic() < deadline:\n"
        f"    try: socket.create_connection(('127.0.0.1', {port}), 1).close(); sys.exit()\n"
        "    except OSError: time.sleep(0.05)\n"
        "sys.exit('nobody listens')\n"
    )
    subprocess.run(host.command([sys.executable, "-c", script]), check=True)


def _hello_through(host: Host, port: int) -> str:
    """The RPC protocol that a tunnel's server answers with."""
    script = f"from tests.live.support import hello; print(*hello({port}), sep='.')"
    command = host.command([sys.executable, "-c", script])
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _ask_llama_server(host: Host) -> str:
    """What llama-server answers to a prompt."""
    script = (
        "import json, time, urllib.request, urllib.error\n"
        "body = json.dumps({'prompt': 'The quick', 'n_predict': 8, 'temperature': 0}).encode()\n"
        f"for _ in range(int({LIMIT})):\n"
        "    try:\n"
        "        answer = json.load(urllib.request.urlopen('http://127.0.0.1:8080/completion', body))\n"
        "        print(answer['tokens_predicted']); break\n"
        "    except urllib.error.HTTPError: time.sleep(1)\n"
    )
    words: Sequence[str | Path] = [sys.executable, "-c", script]
    return subprocess.run(host.command(words), capture_output=True, text=True, check=True).stdout
