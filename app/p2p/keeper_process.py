"""What runs inside the keeper: one server, a socket to the launcher, and nothing that could block.

One packet asks, one answers. Only `keeper` talks to it.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import socket
import struct
import subprocess
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import NoReturn

from app.launch import bind_to
from app.p2p import layers, namespace
from app.p2p.landlock import Access, Ruleset
from app.p2p.libc import call


@dataclass(frozen=True)
class Start:
    """A server and what it is shut in by. `env` and `cwd` are as `subprocess` has them."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    shut_in: bool = False
    """Whether it gives up its privileges, and has the layers that follow."""
    rules: Sequence[tuple[str, int]] | None = None
    """Paths and an `Access` to each, for Landlock; None is without."""
    calls: bool = False


class Verb(IntEnum):
    """What is asked, and what its argument is."""

    SPAWN = 1
    """None; brings three descriptors: a `Start` as JSON, its output, where its end is told. Answers its pid."""
    TERMINATE = 2
    """A pid, and no error when it has ended already."""
    KILL = 3
    """A pid, likewise."""
    DIAL = 4
    """A port of the loopback; the answer brings a socket that is connecting to it."""


REQUEST = struct.Struct("=BI")
"""A verb and its argument."""
ANSWER = struct.Struct("=iI")
"""0 or errno, and a pid; then the text of a failure. The first one, unasked, tells how entering the namespace went."""
STATUS = struct.Struct("=i")
"""How the server ended, as `subprocess` has it: an exit status, or minus a signal."""
PACKET = 4096
"""Bytes that hold any request or answer."""

_LEFT_TO_THE_LAUNCHER = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""A Ctrl-C, a `pkill worker` and a stop of the whole control group reach us too."""
_END_LIMIT = 2.0
"""Seconds that the keeper waits for a server it has killed before it ends itself, and for what that left behind."""
_LOOK = 0.01
"""Seconds between two looks at who is left."""
_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def run(control: socket.socket, has_network: bool, launcher: int) -> NoReturn:
    """Be the keeper, in the child of a fork; end when the other end of `control` is closed.

    `has_network` asks for a network of its own; `launcher` is the process id of the parent.
    """
    status = 1
    try:
        bind_to(launcher)
        _settle(control)
        try:
            if has_network:
                namespace.enter()
        except OSError as error:
            _answer(control, error=error)
        else:
            _answer(control)
            _Keeping(control).serve()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # what the launcher has registered to run at its end is not ours


def _become_a_server(keeper: int, start: Start, ruleset: Ruleset | None) -> None:
    if start.shut_in:
        layers.put_on(ruleset, start.calls)
    bind_to(keeper)


def _settle(control: socket.socket) -> None:
    """Let go of what a fork brings along: terminal, signals, descriptors."""
    os.setsid()  # out of reach of the terminal's Ctrl-C
    call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # whatever the server starts becomes ours when it ends
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (*_LEFT_TO_THE_LAUNCHER, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)  # a handler, since SIG_IGN would survive the server's exec
    gc.freeze()  # an object of the launcher collected here would close a descriptor that is ours by then
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != control.fileno():
            with suppress(OSError):  # the listing's own
                os.close(descriptor)


def _end_orphans() -> None:
    """Kill what a server that has ended left behind, in whatever group or session it hides."""
    deadline = time.monotonic() + _END_LIMIT
    with suppress(ChildProcessError, FileNotFoundError):  # none is left; a kernel without CONFIG_PROC_CHILDREN
        while time.monotonic() < deadline:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            for pid in Path("/proc/thread-self/children").read_text().split():
                with suppress(PermissionError):  # a setuid program, started without a sandbox
                    os.kill(int(pid), signal.SIGKILL)  # ours and not reaped: the number is still its own
            time.sleep(_LOOK)


class _Keeping:
    """The keeper's one server, if it runs, and the way to the launcher."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._server: subprocess.Popen[bytes] | None = None
        self._ended = -1
        """Where its end is told."""
        self._held = ExitStack()
        """What stays open while it runs, `_ended` too."""

    def serve(self) -> None:
        """Answer until the launcher is gone, and take the server along."""
        woken, wake = socket.socketpair()
        for end in (woken, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        poller = select.poll()
        poller.register(self._control, select.POLLIN)
        poller.register(woken, select.POLLIN)
        with woken, wake:
            with suppress(ConnectionError):  # the launcher may go while it is being answered
                while True:
                    ready = {descriptor for descriptor, _ in poller.poll()}
                    if woken.fileno() in ready:
                        woken.recv(PACKET)
                    self._tell_end()
                    if self._control.fileno() in ready and not self._take_request():
                        break
            if self._server is not None:
                self._signal(self._server.pid, signal.SIGKILL)
                with suppress(subprocess.TimeoutExpired):
                    self._server.wait(_END_LIMIT)
                _end_orphans()

    def _take_request(self) -> bool:
        """Do what one packet asks; False when there will be no more."""
        packet, descriptors, _, _ = socket.recv_fds(self._control, PACKET, 3, socket.MSG_CMSG_CLOEXEC)
        if packet:
            verb, argument = REQUEST.unpack(packet)
            self._obey(Verb(verb), argument, descriptors)
        return bool(packet)

    def _tell_end(self) -> None:
        if self._server is not None and (status := self._server.poll()) is not None:
            _end_orphans()  # before anybody could take one of them for the next server
            with suppress(BrokenPipeError):
                os.write(self._ended, STATUS.pack(status))
            self._held.close()
            self._server = None

    def _obey(self, verb: Verb, argument: int, descriptors: list[int]) -> None:
        try:
            if verb is Verb.SPAWN:
                self._spawn(*descriptors)
            elif verb is Verb.DIAL:
                self._dial(argument)
            else:
                self._signal(argument, signal.SIGTERM if verb is Verb.TERMINATE else signal.SIGKILL)
                _answer(self._control)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            _answer(self._control, error=error)

    def _spawn(self, command: int, output: int, ended: int) -> None:
        """Start the server, shut in; stdin is empty, and it leads a process group of its own."""
        with os.fdopen(command) as text, os.fdopen(output, "wb") as out, ExitStack() as held:
            held.callback(os.close, ended)
            text.seek(0)
            start = Start(**json.load(text))
            if self._server is not None:
                raise OSError(errno.EBUSY, "a server runs already")
            ruleset = None
            if start.rules is not None:
                ruleset = held.enter_context(Ruleset())
                for path, access in start.rules:
                    ruleset.allow(path, Access(access))
            server = subprocess.Popen(  # it says EINVAL for what `_become_a_server` raises; `layers` has tried that
                start.argv,
                env=start.env,
                cwd=start.cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                # rpc-server sends without MSG_NOSIGNAL: a client that goes before its answer would kill it.
                # Python ignores SIGPIPE, and what is ignored stays so across exec.
                restore_signals=False,
                preexec_fn=partial(_become_a_server, os.getpid(), start, ruleset),
            )
            if ruleset is not None:
                ruleset.pin(f"/proc/{server.pid}/task")  # the child's own descriptors ended with its exec
            self._server, self._ended, self._held = server, ended, held.pop_all()
        _answer(self._control, server.pid)

    def _dial(self, port: int) -> None:
        """Hand out a socket as soon as it belongs to this namespace; waiting for it is the caller's part."""
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as dialled:
            dialled.setblocking(False)
            failure = dialled.connect_ex(("127.0.0.1", port))
            if failure not in (0, errno.EINPROGRESS):
                raise OSError(failure, os.strerror(failure))
            socket.send_fds(self._control, [ANSWER.pack(0, 0)], [dialled.fileno()])

    def _signal(self, pid: int, number: int) -> None:
        """To the server's process group; it is unreaped, so the number is still its own."""
        if self._server is not None and self._server.pid == pid:
            with suppress(ProcessLookupError):
                os.killpg(pid, number)


def _answer(control: socket.socket, pid: int = 0, error: Exception | None = None) -> None:
    code, text = 0, ""
    if error is not None:
        code, text = errno.EINVAL, str(error)
    if isinstance(error, OSError):
        code, text = error.errno or errno.EIO, f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    control.send(ANSWER.pack(code, pid) + text.encode(errors="replace")[: PACKET - ANSWER.size])
