"""Starts a program again and again from a process with one thread: a small one, forked while ours had no more.

Ours has threads by the time that llama-server is to be started anew. A fork of it may find locks held for ever,
and the kernel's "kill me when my parent dies" follows the thread that forked. The starter waits for the launcher
or for the program, never for both: a launcher that dies, however it dies, takes it along, and it the program.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import struct
import subprocess
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import NoReturn

from app.errors import WorkerError
from app.launch import bind_to

START_LIMIT = 30.0
"""Seconds from the request to the program's exec: a fork, and the reading of a file that a busy disk has."""
_PACKET = 1 << 16
"""Bytes that hold any request or answer."""
_ANSWER = struct.Struct("=i")
"""A process id, or 0 and then the text of a failure; once it has ended, its status as `subprocess` has it."""


@dataclass(frozen=True)
class Ended:
    """The program's newest run has ended."""

    status: int | None
    """As `subprocess` has it: an exit status, or minus a signal. None when the starter itself was ended."""


class Starter:
    """The launcher's side. Only the main thread calls."""

    def __init__(self, argv: list[str], env: Mapping[str, str], mask: Iterable[signal.Signals]) -> None:
        """Fork the starter; before there is a second thread. `mask`: the program's blocked signals."""
        self._name = Path(argv[0]).name
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._program = 0
        launcher = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            self._control.close()
            _run(theirs, launcher, argv, env, mask)
        theirs.close()

    def start(self, variables: Mapping[str, str], tell: Callable[[Ended], None]) -> int:
        """Start the program, the last run of which has ended, with `variables` besides its environment.

        Returns the read end of a pipe that is its stderr; whoever reads it closes it. `tell` is called from
        a thread when it has ended. Raises WorkerError when the system refuses to run it.
        """
        log, log_end = os.pipe()
        try:
            self._control.settimeout(START_LIMIT)
            socket.send_fds(self._control, [json.dumps(dict(variables)).encode()], [log_end])
            answer = self._control.recv(_PACKET)
        except OSError as error:
            answer = _ANSWER.pack(0) + (error.strerror or str(error)).encode()
        finally:
            os.close(log_end)
        self._program = _ANSWER.unpack_from(answer)[0] if answer else 0
        if not self._program:
            os.close(log)
            problem = answer[_ANSWER.size :].decode().lower() or "the process that starts it has ended"
            raise WorkerError(f"cannot run {self._name}: {problem}", "`worker assets verify` checks the carried files")
        self._control.settimeout(None)
        Thread(target=self._wait, args=(tell,), name="starter", daemon=True).start()
        return log

    def signal(self, number: signal.Signals) -> None:
        """To the program; nothing happens when it has ended: its number is its own until the next start."""
        if self._program:
            with suppress(ProcessLookupError):  # the starter was killed, and it was reaped by somebody else
                os.kill(self._program, number)

    def close(self) -> None:
        """End the starter, and with it what it runs."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        self._control.close()

    def _wait(self, tell: Callable[[Ended], None]) -> None:
        told = b""
        with suppress(OSError):
            told = self._control.recv(_PACKET)
        tell(Ended(_ANSWER.unpack(told)[0] if told else None))


def _run(
    control: socket.socket, launcher: int, argv: list[str], env: Mapping[str, str], mask: Iterable[signal.Signals]
) -> NoReturn:
    """Be the starter, in the child of a fork. The signals that end the launcher stay blocked: it ends us."""
    status = 1
    try:
        bind_to(launcher)
        gc.freeze()  # an object of the launcher collected here would close a descriptor that is ours by then
        with control:
            _serve(control, argv, env, mask)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # what the launcher has registered to run at its end is not ours


def _serve(control: socket.socket, argv: list[str], env: Mapping[str, str], mask: Iterable[signal.Signals]) -> None:
    program: subprocess.Popen[bytes] | None = None
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _PACKET, 1, socket.MSG_CMSG_CLOEXEC)
        if program is not None:
            program.wait()  # not earlier: until now the launcher may signal it
        if not request:
            return
        with os.fdopen(descriptors[0], "wb", buffering=0) as log:
            try:
                program = subprocess.Popen(
                    argv, env={**env, **json.loads(request)}, stderr=log, preexec_fn=partial(_become, os.getpid(), mask)
                )
            except (OSError, subprocess.SubprocessError) as error:
                program = None
                reason = error.strerror if isinstance(error, OSError) else None
                control.send(_ANSWER.pack(0) + (reason or str(error)).encode()[: _PACKET - _ANSWER.size])
                continue
        control.send(_ANSWER.pack(program.pid))
        end = os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert end is not None  # only WNOHANG has no answer
        control.send(_ANSWER.pack(end.si_status if end.si_code == os.CLD_EXITED else -end.si_status))


def _become(starter: int, mask: Iterable[signal.Signals]) -> None:
    """In the child, before its exec."""
    bind_to(starter)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
