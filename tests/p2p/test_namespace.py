"""Goal: a process ends up alone in its network and who it was; where it may not, the remedy fits."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from app.p2p import namespace


def entered() -> dict[str, object]:
    """What a child finds after `enter`, or the failure."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        report: dict[str, object] = {}
        try:
            namespace.enter()
            with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
                report = {"interfaces": socket.if_nameindex(), "ids": [os.geteuid(), os.getegid()]}
        except OSError as error:
            report = {"failure": error.strerror}
        finally:
            os.write(tell, json.dumps(report).encode())
            os._exit(0)
    os.close(tell)
    with os.fdopen(told) as reading:
        found: dict[str, object] = json.load(reading)
    os.waitpid(pid, 0)
    return found


def test_a_process_is_alone_with_a_loopback_that_works() -> None:
    found = entered()
    if "failure" in found:
        pytest.skip(f"this machine allows no namespace: {found['failure']}")
    assert found == {"interfaces": [[1, "lo"]], "ids": [os.geteuid(), os.getegid()]}


@pytest.mark.parametrize(
    ("switch", "value", "words"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1\n", "AppArmor"),
        ("user/max_user_namespaces", "0\n", "user.max_user_namespaces"),
        ("kernel/unprivileged_userns_clone", "0\n", "kernel.unprivileged_userns_clone"),
        ("user/max_user_namespaces", "96365\n", "container"),
    ],
)
def test_the_remedy_names_the_switch_that_forbids_it(tmp_path: Path, switch: str, value: str, words: str) -> None:
    (tmp_path / switch).parent.mkdir()
    (tmp_path / switch).write_text(value)

    assert words in namespace.remedy(1000, tmp_path)
    assert "--sandbox off" in namespace.remedy(1000, tmp_path)


def test_root_is_not_sent_to_switches_that_do_not_bind_it(tmp_path: Path) -> None:
    (tmp_path / "kernel").mkdir()
    (tmp_path / "kernel/apparmor_restrict_unprivileged_userns").write_text("1\n")

    assert "AppArmor" not in namespace.remedy(0, tmp_path)
