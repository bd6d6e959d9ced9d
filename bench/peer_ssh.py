"""`ssh -L` through an sshd of our own: its host key, its port, one authorized key, nothing of the user's."""

from __future__ import annotations

import getpass
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.pair import Pair, find
from bench.processes import program, wait_for_port
from tests.live.support import free_ports

_SEPARATION = Path("/run/sshd")
"""Debian's sshd, started by root, wants this empty directory; its service makes it."""
_CONFIGURATION = """\
ListenAddress 127.0.0.1:{port}
HostKey {scratch}/host
AuthorizedKeysFile {scratch}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
"""


@contextmanager
def start(server: int, scratch: Path) -> Iterator[Pair]:
    """Between a free port and `server`, with OpenSSH's default cipher and no compression."""
    outer, inner = free_ports(2)
    for key in ("host", "user"):
        command: list[str | Path] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", scratch / key]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    configuration = scratch / "sshd.conf"
    configuration.write_text(_CONFIGURATION.format(port=inner, scratch=scratch))
    if os.geteuid() == 0:
        _SEPARATION.mkdir(mode=0o755, exist_ok=True)
    login: list[str | Path] = [
        "ssh", "-N", "-F", "none", "-i", scratch / "user", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes",
        "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={scratch}/known",
        "-o", "ExitOnForwardFailure=yes", "-L", f"127.0.0.1:{outer}:127.0.0.1:{server}",
        "-p", str(inner), f"{getpass.getuser()}@127.0.0.1",
    ]  # fmt: skip
    sshd = find("sshd") or "sshd"
    with program([sshd, "-D", "-e", "-f", configuration], scratch, "server") as far:
        wait_for_port(far, inner)
        with program(login, scratch, "client") as near:
            wait_for_port(near, outer)
            yield Pair(outer, (near,), (far,))
