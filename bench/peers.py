"""What we are measured beside: every peer is a relay at the client, a relay at the server, and a port to connect to."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import peer_haproxy, peer_ssh, peer_stunnel, peer_worker
from bench.pair import Pair, find


@dataclass(frozen=True)
class Peer:
    """One kind of relay."""

    name: str
    programs: tuple[str, ...]
    """What must be there."""
    version: tuple[str, ...]
    """What tells its version, on stdout or stderr."""
    pattern: str
    """Its group is the version."""
    start: Callable[[int, Path], AbstractContextManager[Pair]]
    """Given the server's port and an empty directory."""

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        gone = [program for program in self.programs if find(program) is None]
        return f"missing: {', '.join(gone)}" if gone else None

    @property
    def described(self) -> str:
        """Its version, or why it is not measured."""
        if self.missing or not self.version:
            return self.missing or "no relay"
        program = find(self.version[0])
        assert program is not None
        shown = subprocess.run([program, *self.version[1:]], capture_output=True, text=True, check=False)
        match = re.search(self.pattern, shown.stdout + shown.stderr)
        return match[1] if match else "of unknown version"


@contextmanager
def _direct(server: int, scratch: Path) -> Iterator[Pair]:  # noqa: ARG001 - as every peer
    yield Pair(server)


def peers(environ: Mapping[str, str] = os.environ) -> tuple[Peer, ...]:
    """All of them, ours last; `WORKER_TEST_BINARY` is the frozen file."""
    binary = environ.get("WORKER_TEST_BINARY", "dist/worker")
    return (
        Peer("direct", (), (), "", _direct),
        Peer("stunnel", ("stunnel4",), ("stunnel4", "-version"), r"stunnel ([\d.]+)", peer_stunnel.start),
        Peer("haproxy", ("haproxy",), ("haproxy", "-v"), r"(\d+\.\d+\.\d+)", peer_haproxy.start),
        Peer("ssh -L", ("ssh", "sshd", "ssh-keygen"), ("ssh", "-V"), r"OpenSSH_(\S+)", peer_ssh.start),
        Peer("worker", (binary,), (binary, "version"), r"(\d+\.\d+\S*)", peer_worker.starter(binary)),
    )


@contextmanager
def started(all_peers: tuple[Peer, ...], server: int) -> Iterator[dict[str, Pair]]:
    """Those of `all_peers` that are not missing, by name, each between its own port and `server`."""
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="worker-bench-")))
        pairs = {}
        for peer in all_peers:
            if peer.missing is None:
                room = scratch / peer.name.replace(" ", "")
                room.mkdir(mode=0o700)
                pairs[peer.name] = stack.enter_context(peer.start(server, room))
        yield pairs


def versions(all_peers: tuple[Peer, ...]) -> dict[str, str]:
    """For the head of a table."""
    return {peer.name: peer.described for peer in all_peers}
