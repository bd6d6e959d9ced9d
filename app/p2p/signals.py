"""Signals as events: a thread waits for them, so that the main thread can wait for everything at one place."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Thread

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME = 0.5
"""Seconds in which a second SIGINT is the same one: Ctrl-C reaches a onefile program twice within a
millisecond, from the terminal and from the bootloader."""
_SI_KERNEL = 0x80  # <asm-generic/siginfo.h>


@dataclass(frozen=True)
class Arrived:
    """A signal that has come."""

    number: signal.Signals
    by_terminal: bool
    """A key, or a line that hung up: the kernel has told the whole foreground, our command included."""

    @property
    def ends(self) -> bool:
        """Whether the user wants an end."""
        return self.number in ENDING


def block() -> set[signal.Signals]:
    """Hold back the signals that `listen` then waits for; the mask as it was.

    To be called before the first thread, so that all inherit it. They stay held back: what
    comes after the end has begun must not become a traceback. What the user
    has us ignore (`nohup`) stays ignored.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _wanted())
    return {number for number in before if isinstance(number, signal.Signals)}


def listen(tell: Callable[[Arrived], None]) -> None:
    """Call `tell` for every signal of `ENDING`, and SIGCHLD, from a thread, until this process ends.

    Ctrl-C reaches a onefile program twice, from the terminal and from the bootloader; it is told once.
    """
    Thread(target=_wait, args=(tell, _wanted()), name="signals", daemon=True).start()


def _wanted() -> set[signal.Signals]:
    return {number for number in (*ENDING, signal.SIGCHLD) if signal.getsignal(number) is not signal.SIG_IGN}


def _wait(tell: Callable[[Arrived], None], wanted: Iterable[signal.Signals]) -> None:
    interrupted = -SAME
    while True:
        info = signal.sigwaitinfo(wanted)
        now = time.monotonic()
        if info.si_signo == signal.SIGINT:
            again, interrupted = now - interrupted < SAME, now
            if again:
                continue
        tell(Arrived(signal.Signals(info.si_signo), info.si_code == _SI_KERNEL))
