"""Reads what llama-server writes while it passes it on: where it listens, and what lies where."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Thread

TALKATIVE = {"LLAMA_ARG_LOG_VERBOSITY": "4"}
"""The environment in which llama-server tells of its model buffers, the least that does; a `-lv` beats it."""
HERE = ""
"""What stands for this machine where others have an endpoint."""
MAX_LINE = 4096
"""Bytes of a line that are looked at."""
BLOCK = 65536
_STDERR = 2

# llama.cpp: `load_tensors` in src/llama-model.cpp, "RPC" in ggml-rpc.cpp, `llama_server` in tools/server/server.cpp.
# What stands before them (time, level, part, colours) is a matter of flags; a model's name is not to be taken for them.
_BEGIN = rb"^(?:\x1b\[[0-9;]*m|[0-9.]|[A-Z]|srv| )*"
_BUFFER = re.compile(_BEGIN + rb"load_tensors: +(\S+) model buffer size = +([0-9]+\.[0-9]+) MiB$")
_REMOTE = re.compile(r"RPC\d+\[(.+)\]")
_LISTENING = re.compile(_BEGIN + rb"llama_server: listening on ((?:https?|unix)://[\w.:/\[\]-]+)(?:\x1b\[0m)?$")


@dataclass(frozen=True)
class Loaded:
    """llama-server has said that it has its model and listens."""

    url: str
    buffers: Mapping[str, float]
    """MiB of the model by endpoint of the RPC server, or `HERE`; empty where the log told none."""


class LogReader:
    """Bytes in, as they come; no I/O. What comes once it listens is also of its clients' making, and not looked at."""

    def __init__(self) -> None:
        self._begun = b""
        self._buffers: dict[str, float] = {}
        self._ready = False

    def feed(self, data: bytes) -> Loaded | None:
        """The first address that these bytes, and those before them, tell of, once."""
        if self._ready:
            return None
        *lines, begun = (self._begun + data).split(b"\n")
        self._begun = begun[:MAX_LINE]
        ready = next(filter(None, map(self._read, lines)), None)
        self._ready = ready is not None
        return ready

    def _read(self, line: bytes) -> Loaded | None:
        line = line[:MAX_LINE].rstrip()
        if found := _BUFFER.search(line):
            remote = _REMOTE.fullmatch(found[1].decode(errors="replace"))
            endpoint = remote[1] if remote else HERE
            self._buffers[endpoint] = self._buffers.get(endpoint, 0.0) + float(found[2])
        elif found := _LISTENING.search(line):
            return Loaded(found[1].decode(errors="replace"), dict(self._buffers))
        return None


class PassedOn:
    """The stderr of one run of llama-server on its way to ours, byte for byte, in a thread of its own."""

    def __init__(self, descriptor: int, tell: Callable[[Loaded], None]) -> None:
        """Take over the read end `descriptor` of its pipe."""
        self._descriptor = descriptor
        self._tell = tell
        self._thread = Thread(target=self._read, name="llama-server log", daemon=True)
        self._thread.start()

    def wait_for_end(self, limit: float) -> None:
        """Until the last byte is through, `limit` seconds at most: a child of its own may hold the pipe open."""
        self._thread.join(limit)

    def _read(self) -> None:
        reader = LogReader()
        with os.fdopen(self._descriptor, "rb", buffering=0) as pipe:
            while data := pipe.read(BLOCK):
                with suppress(OSError):  # ours may be closed; its pipe must be emptied all the same
                    _write(data)
                if ready := reader.feed(data):
                    self._tell(ready)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_STDERR, data) :]
