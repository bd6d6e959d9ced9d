"""The temporary directory of a PyInstaller onefile program: marked, emptied, and cleaned up after kills.

The bootloader unpacks the interpreter to `_MEIxxxxxx` and removes that when its
child ends, but not when it is killed with -9. The marker tells ours from other
programs' and names the process that uses it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from app.directories import opened, remove
from app.parent import die_with_parent

MARKER = "worker.pid"


def home() -> Path | None:
    """Where the bootloader unpacked this program; None when it runs from source."""
    directory = getattr(sys, "_MEIPASS", None)
    return Path(directory) if directory and getattr(sys, "frozen", False) else None


def tie_to_bootloader() -> None:
    """Die with the bootloader, which is the process that the user started; at once if it has died already.

    Until now nothing tied us to it: it may have been killed while the interpreter
    started. It runs the same file as we do, and whoever inherited us does not.
    """
    if home() is None:
        return
    die_with_parent()
    if not _runs_this_file(Path("/proc", str(os.getppid()))):
        os._exit(1)


def _runs_this_file(process: Path) -> bool:
    """Whether it runs the file that we run."""
    try:
        try:
            return (process / "exe").samefile("/proc/self/exe")
        except PermissionError:  # init inherited us, and hides its file; or capabilities make our bootloader hide its
            return (process / "comm").read_bytes() == Path("/proc/self/comm").read_bytes()
    except OSError:
        return False


def mark() -> None:
    """Write our process id into the directory, so that `prune` can tell when it is abandoned."""
    if directory := home():
        (directory / MARKER).write_text(str(os.getpid()))


def empty() -> None:
    """Remove everything but the marker: what comes after exec needs nothing of it.

    The directory itself stays: its name must not go to somebody else before the
    bootloader removes it.
    """
    if directory := home():
        with opened(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
            for name in os.listdir(fd):
                if name != MARKER:
                    remove(fd, name)


def prune() -> list[Path]:
    """Remove the directories that killed launchers of ours left; those that went."""
    removed = []
    top = Path(tempfile.gettempdir())
    for directory in sorted(top.glob("_MEI*")):
        if _abandoned(directory):
            with opened(os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
                remove(fd, directory.name)
            removed.append(directory)
    return removed


def _abandoned(directory: Path) -> bool:
    try:
        if directory.lstat().st_uid != os.geteuid() or directory.is_symlink():
            return False
        pid = int((directory / MARKER).read_text())
    except (OSError, ValueError):
        return False
    return not _alive(pid)


def _alive(pid: int) -> bool:
    """Whether `pid` runs; one that ended and waits for its parent to notice does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
