"""Tells systemd how we are: sd_notify's datagrams, nothing when systemd did not start us."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"

_SEND_LIMIT = 1.0
"""Seconds that a full queue at systemd's end may hold us up."""


def status(text: str) -> str:
    """The line that `systemctl status` shows."""
    return "STATUS=" + text.replace("\n", " ")


def notify(environ: Mapping[str, str], *lines: str) -> bool:
    """Send `lines` (sd_notify(3): `NAME=value` each) in one datagram; whether they were sent.

    Never fails: a worker without its supervisor's ear still works.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):  # Linux's abstract names begin with a zero byte
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.settimeout(_SEND_LIMIT)
            speaker.sendto("\n".join(lines).encode(), address)
    except OSError as error:
        log.debug("systemd was not told %s: %s", lines, error)
        return False
    return True
