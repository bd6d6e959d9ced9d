"""Runs the soak, prints its report and keeps it: `python -m tests.soak MINUTES [--seed N] [--only EVENT ...]`."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from random import Random

from tests.live import model
from tests.live.lan import lan, missing
from tests.live.support import free_port, generate, hidden_environment, serving
from tests.soak import leaks
from tests.soak.events import EVENTS
from tests.soak.field import LASTING, PASSING, REAL, ROOT, Broken, Field, wait_until
from tests.soak.leaks import Row, Usage

REPORT = Path("build/soak.json")
LOGS = "soak-logs"
"""Beside the report: the logs of a soak that failed."""
MACHINES = 6
SETTLE = 60.0
"""Seconds in which what belongs to connections that have gone is given back."""
_SAMPLES = 20
_TAIL = 2000
"""Characters of a log that are shown with a failure."""


@dataclass
class Report:
    """What has happened."""

    seed: int
    minutes: float = 0.0
    events: dict[str, int] = field(default_factory=dict)
    whole_connections: int = 0
    cut_connections: int = 0
    bytes_checked: int = 0
    memory: dict[str, list[int]] = field(default_factory=lambda: {LASTING: [], "head": []})
    """MiB of the worker and the head that last, before each event."""
    leaks: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures and not any(row.leaked for row in self.leaks)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, help="of an earlier run, which it prints")
    parser.add_argument("--only", action="append", choices=list(EVENTS), metavar="EVENT", help=f"{', '.join(EVENTS)}")
    parser.add_argument("--report", type=Path, default=REPORT, help=f"where to keep it (default: {REPORT})")
    arguments = parser.parse_args()
    binary = os.environ.get("WORKER_TEST_BINARY", "")
    if reason := missing() or ("" if binary else "WORKER_TEST_BINARY names no worker"):
        sys.exit(f"error: the soak cannot run: {reason}\nhint: start it as root, with python3 build.py soak")
    report = Report(secrets.randbits(32) if arguments.seed is None else arguments.seed)
    print(f"seed {report.seed}", flush=True)
    logs = arguments.report.with_name(LOGS)
    soak(report, Path(binary).resolve(), arguments.minutes, arguments.only or list(EVENTS), logs)
    show(report)
    if not report.passed:
        print(f"\nthe logs are in {logs}")
    arguments.report.parent.mkdir(exist_ok=True)
    arguments.report.write_text(json.dumps({**asdict(report), "passed": report.passed}, indent=1))
    return 0 if report.passed else 1


def soak(report: Report, binary: Path, minutes: float, names: list[str], logs: Path) -> None:
    """Let the events happen for so long, and look at what is left; `logs` is where they go after a failure."""
    started = time.monotonic()
    scratch = Path(os.path.realpath(tempfile.mkdtemp(prefix="soak-")))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        with lan(MACHINES) as hosts:
            made = Field(hosts, binary, _token(binary), scratch, Random(report.seed), *_llama(scratch))
            stack.callback(made.kill)
            with _failures(report, made, "beginning"):
                _begin(made)
                begin = _usages(made)
                _let_happen(report, made, names, time.monotonic() + minutes * 60)
                for name, used in begin.items():
                    begin[name] = replace(used, memory=warm(report.memory[name], len(names)))
                with _failures(report, made, "settling"):
                    report.leaks += _lasting(made, begin)
            report.failures += made.end()
            report.failures += _tracebacks(made)
            report.leaks += _left(made)
            report.whole_connections, report.cut_connections = made.traffic.whole, made.traffic.cut
            report.bytes_checked = made.traffic.bytes
            if not report.passed:
                shutil.rmtree(logs, ignore_errors=True)
                shutil.copytree(scratch / "logs", logs)
        named = [Path("/run/netns") / name for name in (hosts[0].switch, *(host.namespace for host in hosts))]
        report.leaks.append(Row("network namespaces", 0, sum(path.exists() for path in named), 0))
    report.minutes = (time.monotonic() - started) / 60


def warm(values: list[int], events: int) -> int:
    """The most of the first third, and of the first time that all `events` happened: by then the heaps have their size.

    What a thread keeps for reuse depends on what came together, so they grow in steps that become rare.
    """
    return max(values[: max(events, len(values) // 3)])


def show(report: Report) -> None:
    """The report for a person."""
    for name, count in sorted(report.events.items()):
        print(f"{name:<16}{count:>6}")
    print(
        f"{sum(report.events.values())} events in {report.minutes:.1f} minutes, seed {report.seed}; "
        f"{report.bytes_checked / (1 << 20):,.0f} MiB checked by SHA-256 on {report.whole_connections} connections "
        f"that were whole and {report.cut_connections} that were cut by an event"
    )
    print(f"\n{'left behind':<34}{'begin':>7}{'end':>7}{'allowed':>9}")
    for row in report.leaks:
        print(f"{row.what:<34}{row.begin:>7}{row.end:>7}{row.begin + row.allowed:>9}{'  LEAK' if row.leaked else ''}")
    for name, values in report.memory.items():
        print(f"{name}: MiB over time: {' '.join(map(str, values[:: 1 + len(values) // _SAMPLES]))}")
    for failure in report.failures:
        print(f"\nFAILED: {failure}")
    print("\npassed" if report.passed else "\nFAILED")


def _begin(made: Field) -> None:
    """Everybody is there and has worked once: what is loaded late is loaded."""
    for name in (LASTING, PASSING):
        made.start_backend(name)
    if made.tokens():
        bare = Path(os.environ["WORKER_TEST_TREE"]) / "backend-assets/util/llama-cpp-rpc-server"
        with serving([bare, "-p", str(port := free_port())], port, hidden_environment()):
            assert made.clients and made.model
            made.expected = generate(made.clients, made.model, f"127.0.0.1:{port}")
    for name in (LASTING, PASSING, REAL):
        made.start_worker(name)
    made.start_head()
    for _ in range(3):
        for name in (LASTING, PASSING):
            made.check(made.send(name, 8 << 20))
    EVENTS["strangers"](made)
    EVENTS["listing"](made)


def _let_happen(report: Report, made: Field, names: list[str], deadline: float) -> None:
    """All of them in a new order, again and again."""
    while True:
        for name in made.chance.sample(names, len(names)):
            for lasting, used in _usages(made).items():
                report.memory[lasting].append(used.memory)
            if time.monotonic() > deadline:
                return
            began = time.monotonic()
            with _failures(report, made, name):
                EVENTS[name](made)
            report.events[name] = report.events.get(name, 0) + 1
            print(f"  {name}: {time.monotonic() - began:.1f} s", flush=True)
            with _failures(report, made, f"after {name}"):
                _mend(made)


def _mend(made: Field) -> None:
    """After a failure: whoever has gone is started again, so that the soak goes on."""
    for name in (LASTING, PASSING):
        if made.backends[name].poll() is not None:
            made.start_backend(name)
    for name in (LASTING, PASSING, REAL):
        if made.workers[name].process.poll() is not None:
            made.start_worker(name)


@contextmanager
def _failures(report: Report, made: Field, what: str) -> Iterator[None]:
    """What goes wrong is noted, with the ends of the logs, and the soak goes on."""
    try:
        yield
    except (Broken, OSError, AssertionError, ValueError, subprocess.SubprocessError) as error:
        tails = [
            f"--- {program.log.name}\n{program.text()[-_TAIL:]}"
            for program in {id(program): program for program in [*made.workers.values(), *made.started[-1:]]}.values()
        ]
        report.failures.append("\n".join([f"{what}: {type(error).__name__}: {error}", *tails]))
        print(f"  FAILED: {what}: {error}", flush=True)


def _usages(made: Field) -> dict[str, Usage]:
    return {name: leaks.usage(made.workers[name].pid) for name in (LASTING, "head")}


def _lasting(made: Field, begin: dict[str, Usage]) -> list[Row]:
    """The rows of the worker and the head that were there all the time, once they have settled."""

    def rows() -> list[Row]:
        end = _usages(made)
        return [
            *leaks.compare("lasting worker", begin[LASTING], end[LASTING]),
            *leaks.compare("lasting head", begin["head"], end["head"], leaks.DIALLING_THREADS),
        ]

    with suppress(Broken):  # the rows tell
        wait_until(lambda: not any(row.leaked for row in rows()), "not all is given back", SETTLE)
        return rows()
    for name in begin:
        print(f"{name} holds", *leaks.held(made.workers[name].pid), sep="\n  ")
    return rows()


def _left(made: Field) -> list[Row]:
    """What must not be there any more when every program has ended."""
    made.finish("assets", "prune")
    return [
        Row("processes", 0, leaks.processes(made.scratch), 0),
        Row("temporary directories", 0, len(list(made.temporary.iterdir())), 0),
        Row(
            "half-unpacked assets", 0, len([path for path in (made.scratch / "assets").glob("*.*") if path.is_dir()]), 0
        ),
    ]


def _tracebacks(made: Field) -> list[str]:
    return [
        f"a traceback in {one.log.name}:\n{one.text()[-_TAIL:]}" for one in made.started if "Traceback" in one.text()
    ]


def _token(binary: Path) -> str:
    return subprocess.run([binary, "token"], capture_output=True, text=True, check=True).stdout.strip()


def _llama(scratch: Path) -> tuple[Path | None, Path | None]:
    """llama.cpp's clients and a model; none where the build does not say where they are."""
    clients = os.environ.get("WORKER_TEST_CLIENTS")
    if not clients or not os.environ.get("WORKER_TEST_TREE"):
        print("without llama.cpp's clients: WORKER_TEST_CLIENTS and WORKER_TEST_TREE name none", flush=True)
        return None, None
    return Path(clients), model.make(scratch / "tiny.gguf")


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
