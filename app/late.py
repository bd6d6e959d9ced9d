"""Libraries that only p2p needs: carried beside those of the bootloader, unpacked when a command of p2p starts.

cryptography's alone takes as long to unpack as Python takes to start, and
`llama-cpp-rpc` has no use for it.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from app import carchive, onefile

PREFIX = "late/"
"""Of the entries' names; what follows is where the library belongs below the program's directory."""


def unpack() -> None:
    """Put the libraries where Python looks for them; does nothing when the program runs from source."""
    home = onefile.home()
    if home is None:
        return
    with Path(carchive.EXECUTABLE).open("rb") as file:
        for name, entry in carchive.entries(file).items():
            if name.startswith(PREFIX):
                target = home / name.removeprefix(PREFIX)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(zlib.decompress(entry.read(file)))
