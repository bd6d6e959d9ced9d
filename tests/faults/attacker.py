"""A crowd that only connects, in a process of its own: `python -m tests.faults.attacker silent|flood PORT COUNT`.

It prints a line when it has begun and goes on until its stdin is closed; then it prints how many connections it made.
"""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

SOURCES = 50
"""Loopback addresses that the silent come from."""


def dial(port: int, source: str) -> socket.socket:
    """A connection that is being made."""
    sock = socket.socket()
    sock.setblocking(False)
    sock.bind((source, 0))
    sock.connect_ex(("127.0.0.1", port))
    return sock


def hold(port: int, count: int, source: Callable[[int], str], greeting: bytes, pause: float) -> int:
    """Keep `count` connections open, the ones cut off replaced, one every `pause` seconds. How many there were."""
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    held: dict[int, socket.socket] = {}
    made = 0
    due = 0.0
    while True:
        while len(held) < count and time.monotonic() >= due:
            with suppress(OSError):
                sock = dial(port, source(made))
                held[sock.fileno()] = sock
                poll.register(sock, select.POLLIN | (select.POLLOUT if greeting else 0))
            made += 1
            due = time.monotonic() + pause
            if made == count:
                print("on", flush=True)
        for descriptor, event in poll.poll(1 if pause else 100):
            if descriptor == 0:
                return made
            if event & select.POLLOUT and not event & (select.POLLIN | select.POLLHUP | select.POLLERR):
                with suppress(OSError):
                    held[descriptor].send(greeting)
                poll.modify(descriptor, select.POLLIN)
                continue
            poll.unregister(descriptor)
            held.pop(descriptor).close()


@contextmanager
def attacking(how: str, port: int, count: int) -> Iterator[Callable[[], int]]:
    """The attack goes on; call what is yielded to end it and learn how many connections were made."""
    command = [sys.executable, "-m", "tests.faults.attacker", how, str(port), str(count)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    made: list[int] = []

    def end() -> int:
        if not made:
            out, _ = process.communicate(timeout=30)
            made.append(int(out.split()[-1]))
        return made[0]

    try:
        assert process.stdout.readline() == "on\n"
        yield end
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


if __name__ == "__main__":
    _, how, port, count = sys.argv
    if how == "silent":
        print(hold(int(port), int(count), lambda number: f"127.1.0.{1 + number % SOURCES}", b"", 0.002))
    else:
        print(hold(int(port), int(count), lambda number: "127.2.0.1", b"GET / HTTP/1.1\r\n\r\n", 0.0))
