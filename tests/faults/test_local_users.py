"""Goal: other users of the machine get neither the server nor a tunnel, and never have their files run by us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.directories import UnsafeDirectory
from app.payload import ensure
from app.verify import verify
from tests.conftest import MakePayload, needs_root, nobody
from tests.faults.conftest import Record
from tests.faults.scale import count
from tests.faults.victim import Victim, victim_on_loopback
from tests.live.support import free_port, hidden_environment

KNOCK = """
import os, socket, sys
os.setgroups([]); os.setuid(int(sys.argv[1]))
got = 0
for number in range(int(sys.argv[3])):
    family, host = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::ffff:127.0.0.1")][number // 2 % 2]
    with socket.socket(family) as sock:
        sock.settimeout(30)
        try:
            sock.connect((host, int(sys.argv[2])))
            sock.sendall(b"\\x0e" + (24).to_bytes(8, "little") + bytes(24))
            if number % 2:
                got += bool(sock.recv(100))
        except OSError:
            pass
print(got)
"""
"""Says HELLO as another user, and every second time goes without waiting for the answer."""

RACE = """
import os, sys
base, uid = sys.argv[1:]
os.setgroups([]); os.setuid(int(uid))
print("on", flush=True)
while True:
    for attempt in (
        lambda: os.mkdir(base), lambda: os.symlink("/var/tmp", base), lambda: os.rename(base, base + ".mine"),
        lambda: os.rmdir(base), lambda: os.unlink(base),
        lambda: open(base + "/backend-assets/util/llama-cpp-rpc-server", "wb"),
        lambda: os.listdir(base),
    ):
        try:
            attempt()
        except OSError:
            pass
"""


def as_nobody(script: str, *arguments: object) -> list[str]:
    """A command that does that as another user."""
    return [sys.executable, "-c", script, *map(str, arguments)]


@contextmanager
def tunnel(binary: Path, victim: Victim, home: Path) -> Iterator[int]:
    """The port of a frozen head's tunnel."""
    words = ["connect", "--no-mdns", "--peer", f"127.0.0.1:{victim.port}", "--base-port", str(free_port())]
    env = hidden_environment(HOME=str(home), TMPDIR=str(home), LOCALAI_TOKEN=victim.token)
    head = subprocess.Popen(
        [binary, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        assert head.stdout is not None
        yield int(head.stdout.readline().rpartition(":")[2])
    finally:
        head.terminate()
        head.communicate(timeout=30)


@needs_root
def test_another_user_at_a_tunnel(binary: Path, victim: Victim, tmp_path: Path, record: Record) -> None:
    """Row 32. The server in its sandbox, which has no port on this machine: tests/p2p/test_keeper.py."""
    tried = count(12, 100)
    with tunnel(binary, victim, tmp_path) as port:
        reached = victim.reached
        told = subprocess.run(as_nobody(KNOCK, nobody, port, tried), capture_output=True, text=True, check=True)
        assert told.stdout.strip() == "0"
        assert victim.reached == reached, "a byte of another user's was passed on"
        ours = subprocess.run(as_nobody(KNOCK, 0, port, 4), capture_output=True, text=True, check=True)
        assert ours.stdout.strip() == "2", "our own user is refused too: this test could not fail"
    record(32, f"0 of {tried} served, 0 connections to rpc-server")


@needs_root
def test_another_user_races_the_start(make_payload: MakePayload, record: Record) -> None:
    """Row 35: below /tmp, where anybody may make a directory before us. Damaged files: tests/test_payload.py."""
    payload, tried = make_payload(), count(25, 1_000)
    base = Path(tempfile.gettempdir(), f"worker-race-{os.getpid()}")
    racer = subprocess.Popen(as_nobody(RACE, base, nobody), stdout=subprocess.PIPE, text=True)
    refused = 0
    try:
        assert racer.stdout is not None
        racer.stdout.readline()
        for _ in range(tried):
            try:
                assets = ensure(payload, str(base), {})
            except UnsafeDirectory:
                refused += 1
            else:
                verify(assets.fd, payload.manifest)
                assert os.fstat(assets.fd).st_uid == 0
                assert Path(f"/proc/self/fd/{assets.fd}").readlink() == base / payload.manifest.digest
                os.close(assets.fd)
            _remove(base)
    finally:
        racer.kill()
        racer.communicate()
        _remove(base)
        _remove(Path(f"{base}.mine"))
    record(35, f"{tried} starts raced: {tried - refused} with our own files, {refused} refused, 0 with another's")


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)


@needs_root
def test_no_namespaces(binary: Path, tmp_path: Path, record: Record) -> None:
    """Row 53: without any capability, as in a container."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    with victim_on_loopback(binary, tmp_path, "--sandbox", "auto", wrapper=bare) as victim:
        assert "THE SANDBOX LACKS A LAYER: rpc-server has not a network of its own" in victim.log
        victim.is_well()
    env = hidden_environment(HOME=str(tmp_path), TMPDIR=str(tmp_path), LOCALAI_TOKEN=victim.token)
    env["BACKEND_ASSETS_PATH"] = f"{os.path.realpath(tmp_path)}/assets"
    words = ["p2p-llama-cpp-rpc", "--no-mdns", "--listen", "127.0.0.1:0", "--sandbox", "on"]
    told = subprocess.run([*bare, binary, *words], env=env, capture_output=True, text=True, timeout=60, check=False)
    error = next(line for line in told.stderr.splitlines() if line.startswith("error: "))
    assert told.returncode == 1, told.stderr
    assert "Operation not permitted" in error or "operation not permitted" in error
    record(53, "auto serves and warns; on refuses: " + error.removeprefix("error: "))
