"""Libraries that only p2p needs: carried beside those of the bootloader, unpacked when a command of p2p starts.

cryptography's alone takes as long to unpack as Python takes to start, and
`llama-cpp-rpc` has no use for it.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from app import carchive, onefile
from app.errors import WorkerError, damaged_copy

PREFIX = "late/"
"""Of the entries' names; what follows is where the library belongs below the program's directory."""


def unpack() -> None:
    """Put the libraries where Python looks for them; does nothing when the program runs from source.

    Raises `WorkerError`: no room, or a damaged program.
    """
    home = onefile.home()
    if home is None:
        return
    try:
        with Path(carchive.EXECUTABLE).open("rb") as file:
            for name, entry in carchive.entries(file).items():
                if name.startswith(PREFIX):
                    target = home / name.removeprefix(PREFIX)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(zlib.decompress(entry.read(file)))
    except zlib.error as error:
        raise damaged_copy(f"this program is broken: {error}") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WorkerError(
            f"cannot unpack to {home}: {reason}", "make room, or name another directory with TMPDIR"
        ) from error
