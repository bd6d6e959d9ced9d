"""Which rpc-server a worker runs, the carried one or the user's own, and what is to be known of it before it starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

from app import server_args
from app.backends.start import Arranger, Start
from app.embedded import Payload
from app.errors import usage_error
from app.launch import ServerCommand
from app.options import P2pOptions
from app.p2p import own_server, rpc
from app.p2p.supervisor import CRASHING_ADVICE

_ADDRESS = ("-H", "--host", "-p", "--port")


@dataclass(frozen=True)
class Runner:
    """What a supervisor is given; its constructor tells of each."""

    prepare: Callable[[], ServerCommand]
    probe: Callable[[socket.socket, float], rpc.Probe]
    after_vain_start: Callable[[], None]
    advice: str


def runner_of(options: P2pOptions, arguments: list[str], carried: Payload, environ: Mapping[str, str]) -> Runner | None:
    """Of the server that `options` want, with `arguments`; None where they want none. Raises `WorkerError`."""
    if options.server:
        # Only its own llama.cpp knows what else it takes.
        _check_address(arguments)
        program = own_server.find(options.server)
        prepare = partial(own_server.command, program, arguments, environ)
        return Runner(prepare, rpc.Prober(), lambda: None, own_server.ADVICE)
    devices = _check_arguments(arguments, carried)
    if options.no_runner:
        return None
    arranger = Arranger(
        carried, arguments, devices, environ,
        assets_path=options.backend_assets_path, backend_dir=options.backend_dir,
        require_gpu=options.require_gpu, insist=True,
    )  # fmt: skip
    return Runner(_holding(arranger), rpc.probe, arranger.forget, CRASHING_ADVICE)


def _check_arguments(arguments: list[str], carried: Payload) -> tuple[str, ...]:
    """The devices that they name. Raises a usage error."""
    checked = server_args.check(arguments, carried.manifest.server_options)
    _check_address(checked.given)
    if "--help" in checked.given:
        raise usage_error("rpc-server's help is no way to serve", "`worker llama-cpp-rpc -- --help` shows it")
    return checked.devices


def _check_address(given: Collection[str]) -> None:
    if not set(_ADDRESS).isdisjoint(given):
        raise usage_error("rpc-server's address is not to be chosen here", "heads reach it through --listen ADDR:PORT")


def _holding(arranger: Arranger) -> Callable[[], ServerCommand]:
    """Prepares a start, and keeps its files from being pruned until the next one is prepared."""
    kept: list[Start] = []

    def prepare() -> ServerCommand:
        kept.append(arranger.prepare())
        if len(kept) > 1:
            for fd in kept.pop(0).held:
                os.close(fd)
        return kept[0].command

    return prepare
