"""rpc-server's arguments, checked before we become it.

It ends with status 0 on an unknown argument, a taken port and a bad host, and by
then nobody is left to explain.
"""

from __future__ import annotations

import errno
import shlex
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import WorkerError, usage_error
from app.manifest import ServerOption

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 50052
"""rpc-server's own defaults (llama.cpp, `tools/rpc/rpc-server.cpp`)."""


@dataclass(frozen=True)
class Arguments:
    """What we need to know of a checked argument list."""

    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    given: frozenset[str] = frozenset()
    """Every spelling of every option that is there."""
    devices: tuple[str, ...] = ()
    """The names behind every --device."""


def join(option: str | None, extra: list[str] | None, devices: Sequence[str] = ()) -> list[str]:
    """Our own --device, the flag's or the environment's text, split as a shell would, then what followed `--`."""
    try:
        return (["--device", ",".join(devices)] if devices else []) + shlex.split(option or "") + (extra or [])
    except ValueError as error:
        raise usage_error(
            f"cannot split the rpc-server arguments: {str(error).lower()}",
            "close the quote, or escape it with a backslash",
        ) from None


def check(arguments: Sequence[str], table: Sequence[ServerOption]) -> Arguments:
    """Check `arguments` against the server's own option table. Raises a usage error."""
    known = {flag: option for option in table for flag in option.flags}
    values: dict[str, str] = {}
    devices: list[str] = []
    rest = iter(arguments)
    for word in rest:
        option = known.get(word)
        if option is None:
            raise usage_error(f"rpc-server has no argument {word!r}", f"it has {_listing(table)}")
        value = next(rest, None) if option.value else ""
        if value is None:
            raise usage_error(f"{word} wants a value", f"{word} {option.value}")
        if option.value in ("N", "PORT"):
            _check_number(word, value, highest=65535 if option.value == "PORT" else 2**31 - 1)
        if "--device" in option.flags:  # several add up; a slash separates as well
            devices += [name for name in value.replace("/", ",").split(",") if name]
        values.update(dict.fromkeys(option.flags, value))
    host = values.get("--host", DEFAULT_HOST)
    _check_host(host)
    return Arguments(host, int(values.get("--port", DEFAULT_PORT)), frozenset(values), tuple(devices))


def check_port(host: str, port: int) -> None:
    """Raise `WorkerError` unless `host`:`port` can be listened on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((socket.inet_ntoa(socket.inet_aton(host)), port))
            probe.listen(1)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            hints = {
                errno.EADDRINUSE: "another program listens there: end it, or choose another port with -p",
                errno.EADDRNOTAVAIL: "no interface of this machine has that address: choose one with -H",
                errno.EACCES: "ports below 1024 need root: choose another with -p",
            }
            hint = hints.get(error.errno or 0, "choose another address with -H and -p")
            raise WorkerError(f"cannot listen on {host}:{port}: {reason}", hint) from None


def _check_number(flag: str, value: str, *, highest: int) -> None:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= highest):
        raise usage_error(f"{flag} wants a number from 1 to {highest}, not {value!r}", f"such as {flag} 1")


def _check_host(host: str) -> None:
    try:
        socket.inet_aton(host)  # the server knows IPv4 addresses only, and no names
    except (OSError, UnicodeEncodeError):
        raise usage_error(
            f"rpc-server wants an IPv4 address, not {host!r}", "-H 0.0.0.0 listens on every one"
        ) from None


def _listing(table: Sequence[ServerOption]) -> str:
    return "; ".join(", ".join(option.flags) + (f" {option.value}" if option.value else "") for option in table)
