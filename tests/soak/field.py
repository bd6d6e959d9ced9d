"""The LAN of the soak: who runs on which machine, how they are started and ended, and the checked traffic."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.live.lan import Host
from tests.live.support import children, greedy, hidden_environment, wait_until_gone

LIMIT = 90.0
"""Seconds in which whatever was disturbed must be well again; a guard, the machine may be busy."""
ECHO_PORT = 50052
POLL = 0.05
ROOT = Path(__file__).resolve().parent.parent.parent

LASTING, PASSING, REAL = "lasting", "passing", "real"
"""Names of the workers: echo for the whole time, echo that comes and goes, rpc-server."""


class Broken(Exception):
    """Something did not happen that must; the text says what."""


@dataclass
class Program:
    """A process that was started, and what it says."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    out: Path

    @property
    def pid(self) -> int:
        """Of the process that does the work: the bootloader's child."""
        return children(self.process.pid)[0]

    @property
    def family(self) -> list[int]:
        """It and all that it has started."""
        found, pending = [], [self.process.pid]
        while pending:
            found.append(pid := pending.pop())
            pending += children(pid)
        return found

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def says(self, pattern: str, after: int = 0) -> None:
        """Wait until its log, behind the first `after` characters, has `pattern`."""

        def said() -> bool:
            if re.search(pattern, self.text()[after:]):
                return True
            if self.process.poll() is not None:
                raise Broken(f"{self.name} ended with {self.process.returncode} in place of saying {pattern!r}")
            return False

        wait_until(said, f"{self.name} does not say {pattern!r}")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send it `number`; its status when it and all that it has started have gone."""
        family = self.family if self.process.poll() is None else []
        if family:
            self.process.send_signal(number)
        return self.gone(family)

    def gone(self, family: Sequence[int]) -> int:
        """Its status, once it has ended and `family` too."""
        try:
            status = self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            raise Broken(f"{self.name} does not end") from None
        if left := [pid for pid in family if not wait_until_gone(pid)]:
            raise Broken(f"{self.name} has ended, and of its processes {left} are left")
        return status


def wait_until(true: Callable[[], object], trouble: str, limit: float = LIMIT) -> None:
    """Poll until `true()`; Broken with `trouble` when it takes too long."""
    deadline = time.monotonic() + limit
    while not true():
        if time.monotonic() > deadline:
            raise Broken(f"{trouble} within {limit:g} s")
        time.sleep(POLL)


@dataclass
class Traffic:
    """What was checked."""

    whole: int = 0
    cut: int = 0
    bytes: int = 0


@dataclass
class Field:
    """Everything that runs. Machines: three workers, the head that lasts, heads that come and go, a stranger."""

    hosts: list[Host]
    binary: Path
    token: str
    scratch: Path
    chance: Random
    clients: Path | None
    model: Path | None
    traffic: Traffic = field(default_factory=Traffic)
    expected: str = ""
    """The tokens of the model against a bare rpc-server."""
    workers: dict[str, Program] = field(default_factory=dict)
    backends: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    started: list[Program] = field(default_factory=list)

    @property
    def machines(self) -> dict[str, Host]:
        """Where each worker runs."""
        return dict(zip((LASTING, PASSING, REAL), self.hosts, strict=False))

    @property
    def lasting_host(self) -> Host:
        return self.hosts[3]

    @property
    def passing_host(self) -> Host:
        return self.hosts[4]

    @property
    def stranger_host(self) -> Host:
        return self.hosts[5]

    @property
    def temporary(self) -> Path:
        """The temporary directory of all programs."""
        return self.scratch / "tmp"

    def env(self, host: Host, token: str = "") -> dict[str, str]:
        home = self.scratch / host.namespace
        for directory in (home, self.temporary):
            directory.mkdir(exist_ok=True)
        return hidden_environment(
            HOME=str(home),
            TMPDIR=str(self.temporary),
            BACKEND_ASSETS_PATH=str(self.scratch / "assets"),
            LOCALAI_TOKEN=token or self.token,
            PYTHONPATH=str(ROOT),
        )

    def start(self, name: str, host: Host, *words: str | Path, token: str = "") -> Program:
        """`worker WORDS` on `host`, its output in files."""
        number = len(self.started)
        log, out = (self.scratch / "logs" / f"{number:04}-{name}.{end}" for end in ("err", "out"))
        log.parent.mkdir(exist_ok=True)
        with log.open("wb") as err, out.open("wb") as stdout:
            process = subprocess.Popen(
                host.command([self.binary, *words]),
                env=self.env(host, token),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=err,
                start_new_session=True,
            )
        self.started.append(Program(name, process, log, out))
        return self.started[-1]

    def start_backend(self, name: str) -> None:
        """The echo behind the worker `name`."""
        command = self.machines[name].command([sys.executable, "-m", "tests.soak.echo", str(ECHO_PORT)])
        self.backends[name] = subprocess.Popen(command, env=self.env(self.machines[name]), stderr=subprocess.DEVNULL)

    def start_worker(self, name: str) -> Program:
        """The worker `name`, until it is ready."""
        flags = [] if name == REAL else ["--no-runner", "--runner-port", str(ECHO_PORT)]
        worker = self.workers[name] = self.start(
            name, self.machines[name], "p2p-llama-cpp-rpc", "--name", name, "--log-level", "debug", *flags
        )
        worker.says("ready, RPC protocol 7")
        return worker

    def start_head(self) -> Program:
        """The head that lasts, with a tunnel to every worker."""
        head = self.workers["head"] = self.start(
            "head", self.lasting_host, "connect", "--workers", "3", "--timeout", "60", "--log-level", "debug"
        )
        wait_until(lambda: head.out.read_text().strip() or head.process.poll() is not None, "no tunnels")
        return head

    def tunnel(self, name: str) -> str:
        """The address on the lasting head that leads to the worker `name`."""
        found = re.findall(rf"(127\.0\.0\.1:\d+) leads to {name} ", self.workers["head"].text())
        if not found:
            raise Broken(f"the head has no tunnel to {name}")
        return str(found[-1])

    def client(self, rpc: str, size: int) -> list[str | Path]:
        """The command that sends `size` bytes through a tunnel."""
        return [sys.executable, "-m", "tests.soak.client", rpc, str(size), str(self.chance.getrandbits(32))]

    def send(self, name: str, size: int) -> subprocess.Popen[str]:
        """Begin to send through the lasting head."""
        command = self.lasting_host.command(self.client(self.tunnel(name), size))
        return subprocess.Popen(command, env=self.env(self.lasting_host), stdout=subprocess.PIPE, text=True)

    def check(self, client: subprocess.Popen[str], *, whole: bool = True) -> bool:
        """Wait for a client of `send`; whether all came back. Broken when it did not and was to, or came back wrong."""
        try:
            out, _ = client.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            client.kill()
            client.communicate()
            raise Broken("a client hangs") from None
        return self.count(out, whole=whole)

    def count(self, told: str, *, whole: bool = True) -> bool:
        """Take in the line of a client."""
        words = told.split()
        if len(words) != 2 or words[0] == "wrong" or (whole and words[0] != "whole"):
            raise Broken(f"a client says {told.strip() or 'nothing'!r}")
        self.traffic.bytes += int(words[1])
        self.traffic.whole += words[0] == "whole"
        self.traffic.cut += words[0] == "cut"
        return words[0] == "whole"

    def prove(self, name: str) -> None:
        """Traffic through the lasting head to `name` works, again if it must."""
        wait_until(lambda: self.check(self.send(name, 1 << 16), whole=False), f"no traffic to {name}")

    def finish(self, *words: str | Path, token: str = "") -> subprocess.CompletedProcess[str]:
        """`worker WORDS` on the machine of the heads that come and go, to its end."""
        program = self.start("passing-head", self.passing_host, *words, token=token)
        status = program.gone([])
        out = program.out.read_text(errors="replace")
        return subprocess.CompletedProcess(words, status, out, program.text())

    def tokens(self) -> list[str | Path] | None:
        """The command of `connect` that prints the model's greedy tokens; None without the clients."""
        if self.clients is None or self.model is None:
            return None
        return greedy(self.clients, self.model, "{rpc}")

    def end(self) -> list[str]:
        """End everything in order; what was wrong about it."""
        wrong = []
        for program in [program for program in self.started if program.process.poll() is None]:
            try:
                if status := program.end():
                    wrong.append(f"{program.name} ended with {status}")
            except Broken as error:
                wrong.append(str(error))
        self.kill()
        return wrong

    def kill(self) -> None:
        """End whatever still runs, at once."""
        for program in self.started:
            if program.process.poll() is None:
                for pid in program.family:
                    os.kill(pid, signal.SIGKILL)
                program.process.wait()
        for backend in self.backends.values():
            backend.kill()
            backend.wait()
