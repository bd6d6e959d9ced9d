"""The one error that a user sees, and the exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process ends with; part of the public interface."""

    OK = 0
    FAILED = 1
    USAGE = 2
    """A wrong command line, a weak or mistyped token included."""
    NO_P2P = 3
    """A p2p command in a build without p2p."""
    ASSETS = 4
    """The assets directory cannot be used."""
    REFUSED = 5
    """The token was refused by every peer tried."""
    NOT_FOUND = 6
    """No worker was found in time."""
    CRASHING = 7
    """rpc-server keeps crashing."""


class WorkerError(Exception):
    """A failure told in one lower-case line, with the remedy in a second.

    `cli` alone prints it. Raise it where the cause is known, with `hint` saying
    what the user can do; a subclass exists only where someone catches it.
    """

    def __init__(self, message: str, hint: str = "", code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code


def usage_error(message: str, hint: str = "") -> WorkerError:
    """The command line or an environment variable is wrong."""
    return WorkerError(message, hint, ExitCode.USAGE)


def damaged_copy(what: str) -> WorkerError:
    """The file of this program is not what was built; `what` of it, and how that shows."""
    return WorkerError(what, "this copy of the program is damaged: copy it again", ExitCode.ASSETS)
