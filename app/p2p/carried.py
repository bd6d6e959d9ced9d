"""The `serve` and `bench` commands: the llama.cpp programs that this file carries, on the workers that are found."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import closing

from app import embedded, onefile
from app.errors import usage_error
from app.launch import leave_no_core
from app.options import BenchOptions, ServeOptions
from app.p2p import programs, signals
from app.p2p.command import PLACEHOLDER, Command
from app.p2p.frames import Purpose
from app.p2p.gathering import Gathering, reach
from app.p2p.llama_server_log import TALKATIVE
from app.p2p.restarts import Restarts
from app.p2p.search import Search
from app.p2p.serving import Serving
from app.p2p.session import Session
from app.p2p.starter import Starter

_RPC = ("--rpc", "-rpc")
"""llama-server knows the first, llama-bench both."""
_DEFAULTS = TALKATIVE | {"GGML_NO_BACKTRACE": "1"}
"""Of llama-server's environment. Without the second it calls gdb, where there is one, whenever a worker is lost."""


def serve(options: ServeOptions, extra: list[str] | None) -> int:
    """llama-server on the workers, started again while there is reason to. Raises WorkerError."""
    arguments = _checked("serve", extra)
    search = Search(options, Purpose.CONNECT)
    onefile.mark()
    leave_no_core()
    program = programs.prepare("llama-server", os.environ, options.backend_assets_path)
    mask = signals.block()
    # No thread exists yet.
    with (
        closing(Starter([str(program.path), *arguments], _DEFAULTS | program.env, mask)) as starter,
        reach(search, options) as reached,
    ):
        gathering = Gathering(options, reached.roster, reached.events, _rpc_protocol())
        restarts = Restarts(not options.no_restart, time.monotonic)
        return Serving(gathering, reached, starter, restarts, programs.refuse_foreign_backends).run()


def bench(options: BenchOptions, extra: list[str] | None) -> int:
    """llama-bench on the workers, once; its exit status. Raises WorkerError."""
    arguments = _checked("bench", extra)
    search = Search(options, Purpose.CONNECT)
    onefile.mark()
    leave_no_core()
    program = programs.prepare("llama-bench", os.environ, options.backend_assets_path)
    mask = signals.block()
    # It reads its workers from no variable. No thread exists yet.
    command = Command([str(program.path), *arguments, _RPC[0], PLACEHOLDER], program.env, mask)
    with reach(search, options) as reached:
        return Session(options, reached, command, _rpc_protocol()).run()


def _checked(name: str, extra: Sequence[str] | None) -> list[str]:
    """The program's arguments. Raises a usage error where they cannot be meant."""
    if not extra:
        raise usage_error(f"{name} wants the model after --", f"worker {name} -- -m model.gguf")
    if any(word.partition("=")[0] in _RPC for word in extra):
        raise usage_error(f"{_RPC[0]} is not to be given: {name} finds the workers", "name them with --peer HOST:PORT")
    return list(extra)


def _rpc_protocol() -> str:
    """What the carried programs speak: they are of one source with the carried rpc-server."""
    return embedded.payload().manifest.native.rpc_protocol
