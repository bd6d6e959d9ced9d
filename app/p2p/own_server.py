"""The user's own rpc-server in place of the carried one: checked, as it will run as us, and how it is started."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from app.directories import UnsafeDirectory, check_owner
from app.errors import WorkerError, usage_error
from app.launch import ServerCommand, server_environment

ADVICE = "it must take --host and --port as llama.cpp's rpc-server does, and answer its HELLO"


def find(given: str) -> Path:
    """The program that `given` leads to. Raises a usage error unless it is one, and nobody but us and root can
    change it, the libraries beside it, or what stands or leads on the way there.
    """
    path = Path(given).expanduser().absolute()
    try:
        program = path.resolve(strict=True)
        if not program.is_file():
            raise _unusable(path, "it is not a regular file", "name the program itself")
        check_owner(program.parent.stat(), program.parent, sticky=False)  # ggml loads whatever is added there
        libraries = [beside for beside in program.parent.iterdir() if ".so" in beside.name and beside.exists()]
        for checked in (path, *libraries):
            for place in _way(checked):
                _check(place)
    except UnsafeDirectory as problem:
        raise usage_error(problem.message, "a server is code: keep it where only you or root can write") from None
    except (OSError, RuntimeError) as error:  # the second for links in a circle
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise _unusable(path, reason, "correct --server or WORKER_SERVER") from None
    if not os.access(program, os.X_OK):
        raise _unusable(path, "it is not executable", f"chmod +x {program}")
    return program


def command(program: Path, arguments: list[str], environ: Mapping[str, str]) -> ServerCommand:
    """How to start it: in its own directory, where ggml looks for backends. Raises as `find` does."""
    return ServerCommand([str(find(str(program))), *arguments], server_environment(environ), program.parent)


def _way(path: Path) -> Iterator[Path]:
    """`path` and what stands on the way to it, links and where they lead as well."""
    for place in (*reversed(path.parents), path):
        yield place
        if place.is_symlink():
            yield from _way(place.parent / place.readlink())


def _check(place: Path) -> None:
    status = os.lstat(place)
    if stat.S_ISLNK(status.st_mode) and status.st_uid in (0, os.geteuid()):
        return  # its mode says nothing: its directory tells who can change it
    check_owner(status, place)


def _unusable(path: Path, reason: str, hint: str) -> WorkerError:
    return usage_error(f"cannot use {path} as rpc-server: {reason}", hint)
