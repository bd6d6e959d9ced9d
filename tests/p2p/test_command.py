"""Goal: the user's command runs as if the user had started it, only when it is told to, and not beyond our end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.errors import WorkerError
from app.p2p.command import Command
from tests.p2p.fake_worker import HANG

PRELUDE = """
import os, signal, sys, time
from app.errors import WorkerError
from app.p2p import signals
from app.p2p.command import Command

def ended(command):
    while (status := command.status()) is None:
        time.sleep(0.01)
    return status

mask = signals.block()
"""


def script(body: str) -> subprocess.CompletedProcess[str]:
    """Run `body` in a process with one thread, as the head is when it forks."""
    return subprocess.run([sys.executable, "-c", PRELUDE + body], capture_output=True, text=True, timeout=HANG)


def test_it_runs_when_it_has_its_line_and_not_before() -> None:
    done = script("""
command = Command(["echo", "{rpc}", "-{rpc}-"], os.environ, mask)
time.sleep(0.3)
print("before", command.status(), flush=True)
command.run("127.0.0.1:1,127.0.0.1:2")
print(ended(command))
""")
    assert done.stdout.splitlines() == ["before None", "127.0.0.1:1,127.0.0.1:2 -127.0.0.1:1,127.0.0.1:2-", "0"]


def test_it_never_runs_when_we_end_before() -> None:
    done = script("""
command = Command(["echo", "ran"], os.environ, mask)
""")
    assert (done.stdout, done.stderr) == ("", "")


def test_no_signal_is_blocked_or_ignored_that_the_user_has_not() -> None:
    done = script("""
command = Command(["grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"], os.environ, mask)
command.run("x")
ended(command)
""")
    assert [line.split()[1] for line in done.stdout.splitlines()] == ["0" * 16] * 2


def test_descriptors_of_ours_are_not_its() -> None:
    done = script("""
kept = open("/dev/null")
command = Command(["ls", "/proc/self/fd"], os.environ, mask)
command.run("x")
ended(command)
""")
    assert done.stdout.split() == ["0", "1", "2", "3"]  # 3 is the directory that ls reads


def test_what_the_system_cannot_run_is_an_error(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("neither a program nor a script\n")
    broken.chmod(0o755)
    done = script(f"""
command = Command([{str(broken)!r}], os.environ, mask)
try:
    command.run("x")
except WorkerError as error:
    print(error.message)
""")
    assert done.stdout == f"cannot run {broken}: exec format error\n"


def test_one_that_was_killed_while_it_waited() -> None:
    done = script("""
command = Command(["echo", "ran"], os.environ, mask)
os.kill(command._pid, signal.SIGKILL)
time.sleep(0.2)
command.run("x")
print(ended(command))
""")
    assert (done.stdout, done.stderr) == ("137\n", "")


@pytest.mark.parametrize(("make", "reason"), [(False, "not found"), (True, "it is not executable")])
def test_what_is_no_program_is_found_out_before_anything_is_done(tmp_path: Path, make: bool, reason: str) -> None:
    path = tmp_path / "program"
    if make:
        path.touch()
    with pytest.raises(WorkerError) as caught:
        Command([str(path)], {"PATH": "/bin"}, ())
    assert caught.value.message == f"cannot run {path}: {reason}"
