"""The frozen worker on loopback as an attacker finds it, and what can be seen of it from outside."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.p2p.frames import Purpose
from app.p2p.identity import Authority, authority
from app.p2p.link import Address, Head, greet, new_head
from app.p2p.token import generate, network, parse
from tests.live.support import children, end, free_port, hidden_environment
from tests.p2p.test_relay import Head as Session
from tests.p2p.test_relay import Worker

LIMIT = 60.0
"""Seconds: a guard against hanging, not a judgement."""
_TICKS = os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """Every process below `pid`."""
    found: list[int] = []
    pending = [pid]
    while pending:
        pending += (below := children(pending.pop()))
        found += below
    return found


def server_below(pid: int) -> int:
    """The rpc-server that runs below `pid`, be it that its file has been deleted."""
    for child in descendants(pid):
        if Path(f"/proc/{child}/exe").readlink().name.startswith("llama-cpp-rpc-server"):
            return child
    raise AssertionError("there is no server")


def memory(pid: int) -> int:
    """Bytes resident."""
    return 1024 * int(_status(pid, "VmRSS").split()[0])


def descriptors(pid: int) -> int:
    """How many are open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    """How many run."""
    return int(_status(pid, "Threads"))


def processor_time(pids: Sequence[int]) -> float:
    """Seconds of a core that these have used."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / _TICKS


def _status(pid: int, name: str) -> str:
    found = re.search(rf"^{name}:\s+(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None, f"{pid} has no {name}"
    return found[1]


def eventually(true: Callable[[], object], what: str = "it never came", limit: float = LIMIT) -> float:
    """Wait until `true()` is; the seconds that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + limit, what
        time.sleep(0.01)
    return time.monotonic() - began


def percentile(seconds: Sequence[float], share: float = 0.99) -> float:
    """The value below which that share of them lies."""
    return sorted(seconds)[round(share * (len(seconds) - 1))]


@dataclass
class Victim:
    """A running worker."""

    process: subprocess.Popen[bytes]
    port: int
    token: str
    authority: Authority
    home: Path

    @property
    def launcher(self) -> int:
        """The process of the relay: the bootloader's child."""
        return children(self.process.pid)[0]

    @property
    def server(self) -> int:
        """The process of rpc-server."""
        return server_below(self.process.pid)

    @property
    def log(self) -> str:
        """Its stderr so far."""
        return (self.home / "stderr").read_text(errors="replace")

    @property
    def reached(self) -> int:
        """Connections that rpc-server has accepted, ours and anybody's."""
        return (self.home / "stdout").read_text(errors="replace").count("Accepted client connection")

    def says(self, pattern: str, after: int = 0) -> float:
        """Wait until its log, behind the first `after` characters, matches; the seconds that took."""
        return eventually(lambda: re.search(pattern, self.log[after:]), f"no {pattern!r} in {self.log[after:]}")

    def greet(self, head: Head | None = None) -> float:
        """A head of its network dials and is welcomed; the seconds that took. Raises LinkError."""
        began = time.monotonic()
        greet(Address("127.0.0.1", self.port), head or self.head()).close()
        return time.monotonic() - began

    def greets(self, number: int) -> list[float]:
        """As `greet`, so many times."""
        head = self.head()
        return [self.greet(head) for _ in range(number)]

    def head(self, ca: Authority | None = None) -> Head:
        """A head of its network, or of another."""
        return new_head(ca or self.authority, "desk", Purpose.LIST)

    def session(self, name: str = "desk") -> Session:
        """A head that can be led by hand."""
        return Session(Worker(self.port, self.authority, None, None), name)  # type: ignore[arg-type]

    def is_well(self) -> None:
        """It serves, and nothing in it broke."""
        self.greet()
        assert self.process.poll() is None
        assert "Traceback" not in self.log, self.log


@contextmanager
def victim_on_loopback(
    binary: Path, home: Path, *flags: str, wrapper: Sequence[str | Path] = (), env: dict[str, str] | None = None
) -> Iterator[Victim]:
    """A worker that is ready, found through its address alone."""
    token, port = generate(), free_port()
    command = [*wrapper, binary, "p2p-llama-cpp-rpc", "--no-mdns", "--listen", f"127.0.0.1:{port}", *flags]
    environment = hidden_environment(
        HOME=str(home), TMPDIR=str(home), BACKEND_ASSETS_PATH=f"{os.path.realpath(home)}/assets", LOCALAI_TOKEN=token
    )
    with (home / "stdout").open("wb") as out, (home / "stderr").open("wb") as err:
        process = subprocess.Popen(
            command, env=environment | (env or {}), stdout=out, stderr=err, start_new_session=True
        )
    victim = Victim(process, port, token, authority(network(parse(token))), home)
    try:
        eventually(lambda: "ready, RPC protocol" in victim.log or process.poll() is not None, "it is never ready")
        assert process.poll() is None, victim.log
        yield victim
    finally:
        end(process)
