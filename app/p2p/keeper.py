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
import logging
import os
import select
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from app.errors import WorkerError
from app.launch import ServerCommand, tell_status
from app.p2p import confinement, keeper_process, layers, namespace
from app.p2p.keeper_process import ANSWER, PACKET, REQUEST, STATUS, Start, Verb
from app.p2p.layers import OF_THE_PROCESS, WORDS, Layer, names
from app.p2p.procnet import holds_one_of, listeners

ANSWER_LIMIT = 10.0
"""Seconds for the keeper's answer: it never waits for anything but a child's exec."""
TERM_LIMIT = 2.0
"""Seconds that rpc-server has between SIGTERM and SIGKILL: it has nothing to save."""
KILL_LIMIT = 5.0
"""Seconds after SIGKILL; a process that lives longer is stuck in a driver."""
SANDBOX_PORT = 5052
"""rpc-server's port where it has a loopback of its own. Below the ephemeral ports: a dial to one of those
before the server listens may be given the same port as its source, and then it has reached itself."""
NO_REASON = (0, -signal.SIGKILL)
"""How a server ends that no layer kept from its driver: it was asked for help or found its port taken; memory ran
out or somebody killed it."""

log = logging.getLogger(__name__)


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
        self.seen = False
        """Whether it was found to be what listens there."""
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

    def listens(self) -> bool:
        """Whether it is this process that listens on the port, and no other."""
        process = Path(f"/proc/{self.pid}")
        return holds_one_of(process, listeners(self.port, process / "net/tcp"))

    def __del__(self) -> None:
        os.close(self._ended)  # not earlier: another thread may be waiting on it


class Keeper:
    """Runs rpc-server, one at a time, and reaches it. Any thread may call any method."""

    def __init__(
        self,
        pid: int,
        control: socket.socket,
        granted: frozenset[Layer] | None,
        missing: Mapping[Layer, str],
        *,
        may_give_way: bool,
    ) -> None:
        self.missing = missing
        """Why each layer of the sandbox that is not in force from the start is not."""
        self._pid = pid
        self._control = control
        self._talking = threading.Lock()
        self._granted = granted
        self._layers = granted
        """In force; None is `--sandbox off`: the server does not even give up its privileges."""
        self._undecided = may_give_way and granted is not None and granted > {Layer.NETWORK}
        """Whether no server could be reached yet, so that the layers may still be what keeps it from starting. Never
        without a network of its own: there another user can take its port, and with that make it end."""
        self._unreached: Child | None = None
        """The newest one, until we end it."""

    @property
    def has_network(self) -> bool:
        """Whether the server has a network of its own."""
        return Layer.NETWORK in (self._layers or ())

    @property
    def sandbox(self) -> str:
        """The layers in force, such as "network+files+calls", or "off"."""
        return names(self._layers or ())

    def spawn(self, command: ServerCommand, port: int | None = None) -> Child:
        """Start rpc-server when the last one has ended.

        `port` counts without a network of its own only (default: a free one). Our address stands last, so that it
        wins over one among the user's arguments. Raises `OSError`: the program cannot be run, the port is taken.
        """
        if self._undecided and self._unreached is not None and (status := self._unreached.wait(0)) is not None:
            self._give_way(status)
        port = SANDBOX_PORT if self.has_network else _free_port(port or 0)
        confinement.make_device_nodes(command.env)
        start = self._start(command, [*command.argv, "--host", "127.0.0.1", "--port", str(port)])
        output, output_end = os.pipe()
        ended, ended_end = os.pipe()
        try:
            with os.fdopen(os.memfd_create("command"), "w") as text:  # it may be longer than a packet
                json.dump(asdict(start), text)
                text.flush()
                pid, _ = self._ask(Verb.SPAWN, 0, [text.fileno(), output_end, ended_end])
        except OSError:
            os.close(output)
            os.close(ended)
            raise
        finally:
            os.close(output_end)
            os.close(ended_end)
        self._unreached = child = Child(pid, port, output, ended)
        return child

    def _start(self, command: ServerCommand, argv: list[str]) -> Start:
        in_force = self._layers or frozenset()
        env: dict[str, str] = command.env
        rules: Sequence[tuple[str, int]] | None = None
        if Layer.FILES in in_force:
            confined = confinement.confine(command)
            env, rules = dict(confined.env), confined.rules
        return Start(argv, env, str(command.cwd), self._layers is not None, rules, Layer.CALLS in in_force)

    def _give_way(self, status: int) -> None:
        """The last server ended before anybody reached it: one start without what may have kept it from its driver."""
        if self._layers != self._granted:
            self._layers, self._undecided = self._granted, False
            log.warning("the sandbox was not what kept rpc-server from starting: it is back to %s", self.sandbox)
        elif status not in NO_REASON:
            self._layers = (self._granted or frozenset()) - set(OF_THE_PROCESS)
            log.warning(
                "THE SANDBOX GIVES WAY, once: rpc-server %s before it could be reached, as with a driver that needs "
                "more than %s leaves it. The next start has %s; --sandbox on would refuse that.",
                tell_status(status), names(self._granted or ()), self.sandbox,
            )  # fmt: skip

    def kill(self, child: Child) -> None:
        """End `child`, gently at first; return when it has ended or cannot be ended."""
        self._unreached = None
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
            # Looked at only now: a listener that is our child's at this moment is the one that we reached. Once will
            # do on a network of its own: who takes the port there later can only be what the server made itself.
            if not (self.has_network and child.seen):
                if not child.listens():
                    raise ConnectionRefusedError(errno.ECONNREFUSED, f"port {child.port} is not rpc-server's")
                child.seen = True
            connection.setblocking(True)
            self._undecided = False
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

    `sandbox`: "on" raises `WorkerError` with the kernel's reason where it refuses a layer, "auto" leaves that one
    out and says so, "off" does not try.
    """
    if sandbox == "off":
        log.warning(
            "NO SANDBOX for rpc-server: --sandbox off. Every user of this machine can reach it, and who "
            "takes it over can do all that you can."
        )
        return _fork(frozenset(), dict.fromkeys(Layer, "--sandbox off"), sandbox)
    missing = layers.refusals()
    granted = frozenset(OF_THE_PROCESS) - missing.keys()
    keeper = None
    if sandbox != "on" or not missing:
        try:
            keeper = _fork(granted | {Layer.NETWORK}, missing, sandbox)
        except OSError as error:
            missing[Layer.NETWORK] = str(error.strerror)
    for layer, reason in missing.items():
        words = WORDS[layer]
        hint = words.remedy or namespace.remedy(os.geteuid())
        if sandbox == "on":
            raise WorkerError(f"rpc-server cannot have {words.what}: {reason}", hint)
        log.warning("THE SANDBOX LACKS A LAYER: rpc-server has not %s: %s. %s", words.what, reason, words.risk)
        log.warning("%s", hint)
    keeper = keeper or _fork(granted, missing, sandbox)
    log.info("rpc-server's sandbox: %s", keeper.sandbox)
    return keeper


def _fork(granted: frozenset[Layer], missing: Mapping[Layer, str], sandbox: str) -> Keeper:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    launcher = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        keeper_process.run(theirs, Layer.NETWORK in granted, launcher)
    theirs.close()
    ours.settimeout(ANSWER_LIMIT)
    in_force = None if sandbox == "off" else granted
    keeper = Keeper(pid, ours, in_force, missing, may_give_way=sandbox == "auto")
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
