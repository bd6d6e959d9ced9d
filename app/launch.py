"""The one place that prepares a child: a hermetic environment, and exec.

What the server sees is the user's environment with these changes and no other:

- what the bootloader set for itself is put back as the user had it
  (`LD_LIBRARY_PATH`) or dropped (`_PYI*`, `_MEI*`);
- the token variables are dropped: the server has no use for the secret;
- `backend-assets/lib` and `<assets>/lib`, where they exist, are appended to
  `LD_LIBRARY_PATH`, as LocalAI does; `LOCALAI_SKIP_LIBRARY_PATH` turns that off;
- paths that ggml reads are made absolute, because the working directory becomes
  the server's own: ggml also loads `libggml-*.so` from the current directory.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from app import onefile
from app.directories import UnsafeDirectory, open_private
from app.options import TOKEN_VARIABLES
from app.parent import die_with_parent
from app.payload import LIBRARIES, Assets

_BOOTLOADER_PREFIXES = ("_PYI", "_MEI", "PYINSTALLER_")
_LOADER_VARIABLES = ("LD_LIBRARY_PATH",)
_ORIGINAL = "_ORIG"
"""PyInstaller keeps the user's value of a variable that it changed under this suffix."""
_PATH_VARIABLES = ("LLAMA_CACHE", "XDG_CACHE_HOME", "GGML_BACKEND_PATH")
SKIP_LIBRARY_PATH = "LOCALAI_SKIP_LIBRARY_PATH"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerCommand:
    """An rpc-server, or another program, ready to be started: what `execve` wants, and the working directory."""

    argv: list[str]
    env: dict[str, str]
    cwd: Path


def user_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` as the user had it before the bootloader changed it."""
    env = {name: value for name, value in environ.items() if not name.startswith(_BOOTLOADER_PREFIXES)}
    for name in _LOADER_VARIABLES:
        original = env.pop(name + _ORIGINAL, None)
        if original is not None:
            env[name] = original
        elif onefile.home() is not None:
            env.pop(name, None)
    return env


def server_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What every server gets of `environ`: no token, and no relative path for a working directory that is not ours."""
    env = user_environment(environ)
    for name in TOKEN_VARIABLES:
        env.pop(name, None)
    for name in _PATH_VARIABLES:
        if env.get(name):
            env[name] = str(Path(env[name]).absolute())
    return env


def server_command(
    assets: Assets,
    arguments: list[str],
    environ: Mapping[str, str],
    *,
    program: Path | None = None,
    libraries: Sequence[Path] = (),
) -> ServerCommand:
    """How to start the server of `assets` with `arguments`, from the environment we were started in.

    `program`: another one, or a copy, in its place. `libraries` are directories for the very end of the library path.
    """
    program = program or assets.server
    env = server_environment(environ)
    argv = [str(program), *arguments]
    if not env.get(SKIP_LIBRARY_PATH):
        ours = [*_library_directories(assets), *libraries]
        if ours:
            env["LD_LIBRARY_PATH"] = ":".join(filter(None, [env.get("LD_LIBRARY_PATH", ""), *map(str, ours)]))
        loader = assets.path / LIBRARIES / "ld.so"
        if loader.exists():
            argv.insert(0, str(loader))
    return ServerCommand(argv, env, program.parent)


def bind_to_parent() -> None:
    """In the process that is about to exec: die with the parent, and leave no core file."""
    die_with_parent()
    leave_no_core()


def bind_to(parent: int) -> None:
    """The same for a child of `parent`, which may be dead already: then this process ends at once."""
    bind_to_parent()
    if os.getppid() != parent:
        os._exit(1)


def leave_no_core() -> None:
    """For this process and its children: a core file would hold the token, or what the cluster computes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def tell_status(status: int | None) -> str:
    """How a child ended, `status` as `subprocess` has it; to be read after its name."""
    if status is None or status >= 0:
        return f"ended with exit status {status}"
    known = {number.value: number.name for number in signal.Signals}
    return f"was killed by {known.get(-status, f'signal {-status}')}"


def become(command: ServerCommand, held: Sequence[int]) -> NoReturn:
    """Replace this process by the server, which keeps `held`: the locks on the directories of its files."""
    for fd in held:
        os.set_inheritable(fd, True)
    bind_to_parent()
    # What is ignored stays so across exec. rpc-server sends without MSG_NOSIGNAL: a
    # client that leaves before its answer would kill it; so it only sees an error.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.chdir(command.cwd)
    onefile.empty()
    os.execve(command.argv[0], command.argv, command.env)  # noqa: S606 - becoming the server is the job


def _library_directories(assets: Assets) -> list[Path]:
    """The carried libraries, then the user's own; these hold code, so nobody else may be able to write there."""
    directories = [assets.path / LIBRARIES] if (assets.path / LIBRARIES).is_dir() else []
    own = assets.base / "lib"
    try:
        os.close(open_private(own, create=False))
        directories.append(own)
    except FileNotFoundError:
        pass
    except UnsafeDirectory as problem:
        log.warning("%s is left out: %s", own, problem.message)
    return directories
