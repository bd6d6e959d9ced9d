"""The launcher's side of the keeper: the process that runs rpc-server and hands out sockets that reach it.

    launcher ---- spawn, kill, dial ----> keeper ---- fork, exec ----> rpc-server
       ^ ^------- sockets made inside ------'                              |
       '------------------ its output and its exit status: two pipes ------'

A process, because one with threads may not enter a user namespace and because the kernel's "kill me
when my parent dies" follows the thread that forked. When the launcher goes, however it goes, the
keeper and the server go too.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import threading
from contextlib import suppress
from pathlib import Path

from app.errors import WorkerError
from app.launch import ServerCommand
from app.p2p import keeper_process, namespace
from app.p2p.keeper_process import ANSWER, PACKET, REQUEST, STATUS, Verb
from app.p2p.procnet import IPV4, holds_one_of, listeners

ANSWER_LIMIT = 10.0
"""Seconds for the keeper's answer: it never waits for anything but a child's exec."""
TERM_LIMIT = 2.0
"""Seconds that rpc-server has between SIGTERM and SIGKILL: it has nothing to save."""
KILL_LIMIT = 5.0
"""Seconds after SIGKILL; a process that lives longer is stuck in a driver."""
SANDBOX_PORT = 5052
"""rpc-server's port where it has a loopback of its own. Below the ephemeral ports: a dial to one of those
before the server listens may be given the same port as its source, and then it has reached itself."""


class KeeperLost(ConnectionError):
    """The keeper has ended, and the server with it."""


class Child:
    """One run of rpc-server. Any thread may wait for its end."""

    def __init__(self, pid: int, port: int, output: int, ended: int) -> None:
        self.pid = pid
        self.port = port
        """Where it listens on the loopback of its namespace."""
        self.output = output
        """The read end of the pipe that is its stdout and stderr; whoever reads it closes it."""
        self._ended = ended
        self._reading = threading.Lock()
        self._status: int | None = None

    def wait(self, timeout: float | None) -> int | None:
        """Its exit status, or minus the signal that killed it; None when it still runs after `timeout` seconds.

        Raises `KeeperLost` when nobody is left who could tell.
        """
        if self._status is None and _ready(self._ended, select.POLLIN, timeout):
            with self._reading:
                if self._status is None:
                    told = os.read(self._ended, STATUS.size)
                    if not told:
                        raise KeeperLost("the process that keeps rpc-server has ended")
                    (self._status,) = STATUS.unpack(told)
        return self._status

    def __del__(self) -> None:
        os.close(self._ended)  # not earlier: another thread may be waiting on it


class Keeper:
    """Runs rpc-server, one at a time, and reaches it. Any thread may call any method."""

    def __init__(self, pid: int, control: socket.socket, reason: str = "", hint: str = "") -> None:
        self.reason = reason
        """Why there is no sandbox; empty when there is one."""
        self.hint = hint
        """What can be done about it."""
        self._pid = pid
        self._control = control
        self._talking = threading.Lock()

    @property
    def sandboxed(self) -> bool:
        """Whether the server has a network of its own."""
        return not self.reason

    def spawn(self, command: ServerCommand, port: int | None = None) -> Child:
        """Start rpc-server when the last one has ended.

        `port` counts without a sandbox only (default: a free one). Our address stands last, so that it
        wins over one among the user's arguments. Raises `OSError`: the program cannot be run, the port is taken.
        """
        port = SANDBOX_PORT if self.sandboxed else _free_port(port or 0)
        argv = [*command.argv, "--host", "127.0.0.1", "--port", str(port)]
        output, output_end = os.pipe()
        ended, ended_end = os.pipe()
        try:
            with os.fdopen(os.memfd_create("command"), "w") as text:  # it may be longer than a packet
                json.dump([argv, command.env, str(command.cwd)], text)
                text.flush()
                pid, _ = self._ask(Verb.SPAWN, 0, [text.fileno(), output_end, ended_end])
        except OSError:
            os.close(output)
            os.close(ended)
            raise
        finally:
            os.close(output_end)
            os.close(ended_end)
        return Child(pid, port, output, ended)

    def kill(self, child: Child) -> None:
        """End `child`, gently at first; return when it has ended or cannot be ended."""
        for verb, limit in ((Verb.TERMINATE, TERM_LIMIT), (Verb.KILL, KILL_LIMIT)):
            if child.wait(0) is None:
                self._ask(verb, child.pid)
                child.wait(limit)

    def dial(self, child: Child, timeout: float) -> socket.socket:
        """A blocking socket whose other end is `child`; `OSError` when there is none within `timeout` seconds."""
        _, descriptors = self._ask(Verb.DIAL, child.port)
        if not descriptors:  # the kernel drops what our table has no room for
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        connection = socket.socket(fileno=descriptors[0])
        try:
            if not _ready(connection.fileno(), select.POLLOUT, timeout):
                raise TimeoutError(errno.ETIMEDOUT, f"rpc-server took no connection within {timeout:g} s")
            failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise OSError(failure, os.strerror(failure))
            # Looked at only now: a listener that is our child's at this moment is the one that we reached.
            if not self.sandboxed and not holds_one_of(Path(f"/proc/{child.pid}"), listeners(child.port, IPV4)):
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"port {child.port} is not rpc-server's")
            connection.setblocking(True)
        except OSError:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """End the keeper and what it runs."""
        with self._talking:
            if self._control.fileno() < 0:
                return
            try:
                self._control.shutdown(socket.SHUT_WR)
                self._control.recv(PACKET)  # ends when the keeper does
            except OSError:
                os.kill(self._pid, signal.SIGKILL)
            self._control.close()
            os.waitpid(self._pid, 0)

    def _ask(self, verb: Verb, argument: int, descriptors: list[int] | None = None) -> tuple[int, list[int]]:
        with self._talking:
            try:
                socket.send_fds(self._control, [REQUEST.pack(verb, argument)], descriptors or [])
            except OSError as error:
                raise KeeperLost(f"the process that keeps rpc-server does not listen: {error}") from None
            return _receive(self._control)


def start_keeper(sandbox: str) -> Keeper:
    """Fork the keeper; in the main thread, before there is another.

    `sandbox`: "on" raises `WorkerError` with the kernel's reason where it refuses a namespace, "auto"
    does without one and keeps the reason, "off" does not try.
    """
    reason, hint = "--sandbox off", ""
    if sandbox != "off":
        try:
            return _fork(sandboxed=True)
        except OSError as error:
            reason, hint = str(error.strerror), namespace.remedy(os.geteuid())
        if sandbox == "on":
            raise WorkerError(f"rpc-server cannot have a network of its own: {reason}", hint)
    return _fork(sandboxed=False, reason=reason, hint=hint)


def _fork(sandboxed: bool, reason: str = "", hint: str = "") -> Keeper:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        keeper_process.run(theirs, sandboxed, launcher)
    theirs.close()
    ours.settimeout(ANSWER_LIMIT)
    keeper = Keeper(pid, ours, reason, hint)
    try:
        _receive(ours)
    except OSError:
        keeper.close()
        raise
    return keeper


def _receive(control: socket.socket) -> tuple[int, list[int]]:
    """The pid and the descriptors of an answer; raises the `OSError` that it tells of."""
    try:
        packet, descriptors, _, _ = socket.recv_fds(control, PACKET, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        packet, descriptors = b"", []
        with suppress(OSError):  # an answer that comes late would be taken for the next one's
            control.shutdown(socket.SHUT_RDWR)
    if not packet:
        raise KeeperLost("the process that keeps rpc-server has ended")
    code, pid = ANSWER.unpack_from(packet)
    if code:
        raise OSError(code, packet[ANSWER.size :].decode())
    return pid, descriptors


def _ready(descriptor: int, event: int, timeout: float | None) -> bool:
    """Wait for `event` or an error; poll, since a busy relay has descriptors beyond what select takes."""
    poller = select.poll()
    poller.register(descriptor, event)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


def _free_port(wanted: int) -> int:
    """`wanted`, or any for 0; raises `OSError` when it is taken. Somebody may still take it before the server does."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as rpc-server will
        trial.bind(("127.0.0.1", wanted))
        return int(trial.getsockname()[1])
