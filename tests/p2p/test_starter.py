"""Goal: a program is started again and again while we have threads, as the user would have it, not beyond our end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.p2p.fake_worker import HANG, eventually

PRELUDE = """
import os, queue, signal, sys, time
from app.errors import WorkerError
from app.p2p import signals
from app.p2p.starter import Starter

ends = queue.SimpleQueue()
mask = signals.block()

def run(starter, **variables):
    with open(starter.start(variables, ends.put)) as log:
        written = log.read()
    return written.split(), ends.get().status
"""


def script(body: str) -> str:
    """What `body` prints, in a process that has one thread when it forks."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + body], capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_again_and_again_each_with_its_variables_and_its_status() -> None:
    done = script("""
starter = Starter(["/bin/sh", "-c", "echo $A $B >&2; exit $B"], {"A": "a"}, mask)
signals.listen(lambda _: None)  # from here on we have threads
for number in "037":
    print(run(starter, B=number))
starter.close()
""")
    assert done.splitlines() == ["(['a', '0'], 0)", "(['a', '3'], 3)", "(['a', '7'], 7)"]


def test_no_signal_is_blocked_or_ignored_that_the_user_has_not_and_no_descriptor_is_ours() -> None:
    done = script("""
kept = open("/dev/null")
looking = "grep -E 'Sig(Blk|Ign)' /proc/self/status >&2; ls /proc/self/fd >&2"
starter = Starter(["/bin/sh", "-c", looking], dict(os.environ), mask)
print(*run(starter)[0])
starter.close()
""")
    assert done.split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16, "0", "1", "2", "3"]  # 3 is what ls reads


def test_a_signal_for_it_and_none_for_who_has_its_number_later() -> None:
    done = script("""
starter = Starter(["/bin/sleep", "600"], {}, mask)
log = starter.start({}, ends.put)
starter.signal(signal.SIGTERM)
print(ends.get().status)
starter.signal(signal.SIGTERM)
starter.close()
""")
    assert done == f"{-signal.SIGTERM}\n"


def test_what_cannot_be_run_is_an_error_each_time(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("neither a program nor a script\n")
    broken.chmod(0o755)
    done = script(f"""
starter = Starter([{str(broken)!r}], {{}}, mask)
for _ in range(2):
    try:
        starter.start({{}}, ends.put)
    except WorkerError as error:
        print(error.message)
starter.close()
""")
    assert done == "cannot run broken: exec format error\n" * 2


def test_a_starter_that_is_killed_takes_it_along_and_is_told_of() -> None:
    done = script("""
starter = Starter(["/bin/sh", "-c", "echo $$ >&2; exec sleep 600"], {}, mask)
log = open(starter.start({}, ends.put))
pid = int(log.readline())
os.kill(starter._pid, signal.SIGKILL)
with log:
    print(ends.get().status, log.read() == "")
try:
    starter.start({}, ends.put)
except WorkerError as error:
    print(error.message)
starter.close()
""")
    assert done.splitlines() == ["None True", "cannot run sh: broken pipe"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGQUIT])
def test_it_does_not_outlive_us(number: signal.Signals) -> None:
    body = """
starter = Starter(["/bin/sh", "-c", "echo $$; trap '' TERM HUP INT; while :; do sleep 0.1; done"], {}, mask)
starter.start({}, ends.put)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", PRELUDE + body], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        os.kill(process.pid, number)
        process.wait(HANG)
        eventually(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())
