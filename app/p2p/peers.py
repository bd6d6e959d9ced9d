"""Workers that the user names: `--peer`, the environment, a file."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from app.errors import WorkerError, usage_error
from app.options import DEFAULT_PORT

MAX_FILE_CHARS = 1 << 20
_SHOWN = 80
"""Characters of a wrong peer that an error repeats: a wrong file may be one long line."""
_HOST = re.compile(r"[^\s,/@\[\]]{1,253}")
_HINT = "such as 10.0.0.5, box.lan:25052 or [fe80::1%eth0]:25052"


@dataclass(frozen=True)
class Peer:
    """Where a worker listens: a host name or an address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_peer(text: str, default_port: int = DEFAULT_PORT) -> Peer:
    """`host`, `host:port`, `[v6]:port`, `[v6]` or a bare IPv6 address. Raises a usage error."""
    wrong = f"{text[:_SHOWN]!r} is no peer"
    match = re.fullmatch(r"\[(?P<v6>[^\[\]]+)\](?::(?P<p6>.*))?|(?P<host>[^:]+)(?::(?P<port>[^:]*))?", text.strip())
    if match is not None:
        host, port = match["v6"] or match["host"], match["p6"] if match["v6"] else match["port"]
    else:
        host, port = text.strip(), None
    if (match is None or match["v6"]) and not _is_ipv6(host):
        host = ""
    if not _HOST.fullmatch(host):
        raise usage_error(wrong, _HINT)
    if port is None:
        return Peer(host, default_port)
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise usage_error(f"{wrong}: a port is a number from 1 to 65535", _HINT)
    return Peer(host, int(port))


def read_peers_file(path: Path) -> list[Peer]:
    """One peer a line; blank lines and `#` comments are ignored. Raises a usage error that names the line."""
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_FILE_CHARS + 1)
    except UnicodeDecodeError:
        raise usage_error(f"the peers file {path} is not a text file", "one HOST:PORT a line") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise usage_error(f"cannot read the peers file {path}: {reason}", "check --peers-file") from None
    if len(text) > MAX_FILE_CHARS:
        raise usage_error(f"the peers file {path} is too long", "was a wrong file given?")
    peers = []
    for number, line in enumerate(text.splitlines(), 1):
        entry = line.partition("#")[0].strip()
        if entry:
            try:
                peers.append(parse_peer(entry))
            except WorkerError as error:
                raise WorkerError(f"{path}, line {number}: {error.message}", error.hint, error.code) from None
    return peers


def _is_ipv6(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).version == 6
    except ValueError:
        return False
