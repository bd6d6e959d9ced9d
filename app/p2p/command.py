"""The user's command: forked while this process has one thread, and run when the tunnels are there."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from app.errors import WorkerError
from app.p2p.signals import Arrived
from app.parent import die_with_parent

RPC_VARIABLE = "LLAMA_ARG_RPC"
"""The `--rpc` of llama.cpp's own programs."""
RPC_VARIABLES = (RPC_VARIABLE, "LLAMACPP_GRPC_SERVERS")
"""The second is LocalAI's; llama-bench reads neither, hence `{rpc}`."""
PLACEHOLDER = "{rpc}"
_PIPE_BLOCK = 4096


class Command:
    """A child of the main thread that waits for its `--rpc`.

    It is forked before there is any other thread, because after a fork from many
    a child may find locks held for ever, and by the main thread, because the
    kernel's death signal follows the thread that forked.
    """

    def __init__(self, argv: list[str], env: Mapping[str, str], mask: Iterable[signal.Signals]) -> None:
        """`env`: its environment, but for `RPC_VARIABLES`. `mask`: what was blocked before `signals.block`.

        Raises WorkerError for what is no program.
        """
        self._name = argv[0]
        self._status: int | None = None
        program = _find(argv[0], env)
        waiting, self._start = os.pipe()
        self._report, reporting = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._start)
            _become(program, argv, env, mask, waiting, reporting)
        os.close(waiting)
        os.close(reporting)

    def run(self, rpc: str) -> None:
        """Let it begin; `rpc` is what `--rpc` takes. Raises WorkerError when the system refuses to run it."""
        with suppress(BrokenPipeError), os.fdopen(self._start, "w") as start:
            start.write(rpc)  # where it was killed meanwhile, `status` tells
        with os.fdopen(self._report) as report:
            problem = report.read()
        if problem:
            raise WorkerError(f"cannot run {self._name}: {problem.lower()}", "is it a program of this machine?")

    def pass_on(self, arrived: Arrived) -> None:
        """Give it a signal that only we got."""
        if not arrived.by_terminal and self._status is None:
            os.kill(self._pid, arrived.number)

    def status(self) -> int | None:
        """None while it runs; then its exit status, or as a shell has it 128 and the signal that killed it."""
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code
        return self._status


def _find(name: str, env: Mapping[str, str]) -> str:
    program = shutil.which(name, path=env.get("PATH"))
    if program is None:
        there = os.sep in name and Path(name).exists()
        raise WorkerError(
            f"cannot run {name}: {'it is not executable' if there else 'not found'}",
            f"chmod +x {name}" if there else "is it installed, and its directory in PATH?",
        )
    return program


def _become(
    program: str,
    argv: list[str],
    env: Mapping[str, str],
    mask: Iterable[signal.Signals],
    waiting: int,
    reporting: int,
) -> NoReturn:
    """In the child: wait, then be the command. Our end, before or after, is its end too."""
    status = 127
    try:
        die_with_parent(signal.SIGTERM)  # not SIGKILL: what a user's program has to save it may save
        rpc = b""
        while block := os.read(waiting, _PIPE_BLOCK):
            rpc += block
        if rpc:
            _exec(program, argv, env, mask, rpc.decode())
    except OSError as error:
        os.write(reporting, (error.strerror or str(error)).encode())
    finally:
        os._exit(status)


def _exec(program: str, argv: list[str], env: Mapping[str, str], mask: Iterable[signal.Signals], rpc: str) -> None:
    # Python ignores these two, and what is ignored stays so across exec; SIGINT has a
    # handler of ours, which must not catch what has come meanwhile.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    told = {**env, **dict.fromkeys(RPC_VARIABLES, rpc)}
    os.execve(program, [word.replace(PLACEHOLDER, rpc) for word in argv], told)  # noqa: S606 - no shell in between
