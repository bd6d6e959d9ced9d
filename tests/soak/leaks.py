"""What a program may leave behind, counted."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MORE_MEMORY = 8
"""MiB that a process may have grown by since it was warm: what leaks goes on growing."""
DIALLING_THREADS = 8
"""A head makes them when it first needs them, and keeps them (`dialer.MAX_DIALS`)."""


@dataclass(frozen=True)
class Usage:
    """Of one process."""

    memory: int
    """MiB resident."""
    descriptors: int
    threads: int
    sockets: int
    """TCP sockets that its machine's programs hold. Those that the kernel alone still buries, for a minute or two
    when the other side's address has gone, are no program's any more."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    begin: int
    end: int
    allowed: int
    """More than at the beginning by so much is no leak."""

    @property
    def leaked(self) -> bool:
        return self.end > self.begin + self.allowed


def usage(pid: int) -> Usage:
    """What `pid` holds now."""
    status = Path(f"/proc/{pid}/status").read_text()
    memory, threads = (int(re.findall(rf"^{key}:\s+(\d+)", status, re.MULTILINE)[0]) for key in ("VmRSS", "Threads"))
    descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    inodes = [row.split()[9] for table in tables for row in table]
    return Usage(memory >> 10, descriptors, threads, sum(inode != "0" for inode in inodes))


def held(pid: int) -> list[str]:
    """What the descriptors of `pid` are."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(f"{descriptor.name} {descriptor.readlink()}")
    return found


def compare(name: str, begin: Usage, end: Usage, threads: int = 0) -> list[Row]:
    """The rows of a process that has lasted; `threads` may be more."""
    return [
        Row(f"{name}: memory, MiB", begin.memory, end.memory, MORE_MEMORY),
        Row(f"{name}: descriptors", begin.descriptors, end.descriptors, 0),
        Row(f"{name}: threads", begin.threads, end.threads, threads),
        Row(f"{name}: TCP sockets", begin.sockets, end.sockets, 0),
    ]


def processes(mark: Path) -> int:
    """Processes whose environment names `mark`."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            count += str(mark).encode() in (process / "environ").read_bytes()
    return count
