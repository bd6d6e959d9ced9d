"""Goal: in a soak of seconds nothing is lost and nothing is left behind; `build.py soak` runs it for long."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.live.lan import missing
from tests.soak import client

MINUTES = "0.4"
QUICK = ("traffic", "killed worker", "killed server", "killed backend", "stopped worker", "new address", "strangers")
SIZE = 100_000
LIMIT = 600
"""Seconds: a guard against hanging."""


BINARY = os.environ.get("WORKER_TEST_BINARY")


@pytest.mark.skipif(bool(missing()), reason=missing() or "-")
@pytest.mark.skipif(not BINARY, reason="WORKER_TEST_BINARY names no worker: start the tests with python3 build.py test")
def test_a_short_soak(tmp_path: Path) -> None:
    report_file = tmp_path / "soak.json"
    events = [word for name in QUICK for word in ("--only", name)]
    result = subprocess.run(
        [sys.executable, "-m", "tests.soak", MINUTES, "--seed", "1", "--report", report_file, *events],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(report_file.read_text())
    assert sum(report["events"].values()) > 0
    assert report["bytes_checked"] > 0
    assert report["leaks"], "nothing was counted: this test could not fail"


def _told_by_a_client(capsys: pytest.CaptureFixture[str], spoil: Callable[[bytes], bytes]) -> str:
    """What the client says of an echo whose bytes go through `spoil`."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as incoming:
            connection.sendall(spoil(incoming.read(9 + SIZE)[9:]))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        client.main(f"127.0.0.1:{listener.getsockname()[1]}", SIZE, 1)
        thread.join()
    return capsys.readouterr().out.strip()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda data: data, f"whole {SIZE}"),
        (lambda data: data[:-1], f"cut {SIZE - 1}"),
        (lambda data: data[:50] + b"?" + data[50:-1], f"wrong {SIZE}"),
    ],
)
def test_the_client_tells_whole_from_cut_from_wrong(
    capsys: pytest.CaptureFixture[str], spoil: Callable[[bytes], bytes], told: str
) -> None:
    assert _told_by_a_client(capsys, spoil) == told
