"""Goal: the keeper answers each request once, in order, and ends quietly with its launcher, come what may."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from app.p2p import keeper_process
from app.p2p.keeper_process import ANSWER, PACKET, REQUEST, STATUS, Verb

HANG_GUARD = 20.0


@dataclass
class Running:
    """A keeper without a namespace, and the launcher's end of the socket to it."""

    pid: int
    control: socket.socket
    errors: int
    """Where its stderr can be read."""

    def ask(self, verb: Verb, argument: int = 0, descriptors: list[int] | None = None) -> None:
        socket.send_fds(self.control, [REQUEST.pack(verb, argument)], descriptors or [])

    def answer(self) -> tuple[int, int, str, list[int]]:
        """Error, pid, text, descriptors."""
        packet, descriptors, _, _ = socket.recv_fds(self.control, PACKET, 1, socket.MSG_CMSG_CLOEXEC)
        code, pid = ANSWER.unpack_from(packet)
        return code, pid, packet[ANSWER.size :].decode(), descriptors

    def ask_to_spawn(self, *argv: str) -> int:
        """Send the request; the answer is pending. Returns where the end will be told."""
        told, tell = os.pipe()
        null = os.open(os.devnull, os.O_WRONLY)
        with os.fdopen(os.memfd_create("command"), "w") as text:
            json.dump({"argv": argv, "env": {}, "cwd": "/"}, text)
            text.flush()
            self.ask(Verb.SPAWN, 0, [text.fileno(), null, tell])
        os.close(null)
        os.close(tell)
        return told

    def end(self) -> tuple[int, str]:
        """Its exit status and what it printed, once it has gone."""
        self.control.close()
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        with os.fdopen(self.errors) as printed:
            return os.waitstatus_to_exitcode(status), printed.read()


Start = Callable[..., Running]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[Running] = []

    def fork(launcher: int | None = None) -> Running:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        errors, errors_end = os.pipe()
        here = os.getpid()
        pid = os.fork()
        if pid == 0:
            os.dup2(errors_end, 2)
            ours.close()
            keeper_process.run(theirs, False, here if launcher is None else launcher)
        theirs.close()
        os.close(errors_end)
        ours.settimeout(HANG_GUARD)
        made.append(Running(pid, ours, errors))
        return made[-1]

    yield fork
    for running in made:
        running.control.close()
        if running.pid:
            os.kill(running.pid, signal.SIGKILL)
            os.waitpid(running.pid, 0)
            os.close(running.errors)


def test_it_says_first_that_it_is_there(start: Start) -> None:
    running = start()
    assert running.answer() == (0, 0, "", [])
    assert running.end() == (0, "")


def test_a_keeper_whose_launcher_has_gone_meanwhile_ends(start: Start) -> None:
    """The kernel tells only of a parent's death that comes after it was asked to."""
    running = start(launcher=os.getpid() + 1)
    assert running.control.recv(PACKET) == b""
    assert running.end() == (1, "")


def test_requests_are_answered_in_order(start: Start) -> None:
    running = start()
    running.answer()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        told = running.ask_to_spawn("/bin/sleep", "1000")
        running.ask(Verb.DIAL, port)
        running.ask(Verb.TERMINATE, 1)  # not our server: nothing happens
        code, pid, _, _ = running.answer()
        assert (code, Path(f"/proc/{pid}/exe").samefile("/bin/sleep")) == (0, True)
        code, _, _, descriptors = running.answer()
        assert code == 0
        with socket.socket(fileno=descriptors[0]) as dialled:
            assert dialled.getpeername() == ("127.0.0.1", port)
        assert running.answer() == (0, 0, "", [])
    running.ask(Verb.TERMINATE, pid)
    assert running.answer() == (0, 0, "", [])
    assert STATUS.unpack(os.read(told, 100)) == (-signal.SIGTERM,)
    assert os.read(told, 100) == b""
    os.close(told)


def test_a_launcher_that_goes_before_it_is_answered_takes_all_along_quietly(start: Start) -> None:
    running = start()
    told = running.ask_to_spawn("/bin/sleep", "1000")
    running.ask(Verb.DIAL, 1)
    pid = running.answer()[1] or running.answer()[1]

    assert running.end() == (0, "")

    assert not Path(f"/proc/{pid}").exists()
    os.close(told)


def test_an_end_that_nobody_waits_for_is_no_end_of_the_keeper(start: Start) -> None:
    running = start()
    running.answer()
    os.close(running.ask_to_spawn("/bin/true"))
    assert running.answer()[0] == 0
    told = -1
    for _ in range(1000):  # until the first one's end has been seen
        told = running.ask_to_spawn("/bin/false")
        code, *_ = running.answer()
        if code == 0:
            break
        assert code == errno.EBUSY
        os.close(told)
    assert STATUS.unpack(os.read(told, 100)) == (1,)
    os.close(told)
    assert running.end() == (0, "")
