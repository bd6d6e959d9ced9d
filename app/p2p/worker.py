"""The `p2p-llama-cpp-rpc` command: supervisor, relay and announcement, put together and kept in step."""

from __future__ import annotations

import logging
import os
import platform
import sys
from functools import partial
from queue import SimpleQueue

from app import __version__, embedded, launch, onefile, server_args
from app.cache import tool
from app.cache.directory import with_cache
from app.embedded import Payload
from app.errors import ExitCode, usage_error
from app.options import P2pOptions
from app.p2p import rpc, signals, systemd
from app.p2p.announcer import Announcer
from app.p2p.external import ExternalServer
from app.p2p.frames import MAX_NAME, PROTOCOL
from app.p2p.identity import Role, mint, server_context
from app.p2p.keeper import Keeper, start_keeper
from app.p2p.lender import Lender
from app.p2p.listening import listen, parse_address
from app.p2p.membership import join
from app.p2p.records import clean
from app.p2p.relay import About, Relay
from app.p2p.runner import Runner, runner_of
from app.p2p.server import Down, Failed, OnChange, Ready, RpcServer, ServerState
from app.p2p.server_cache import ServerCache
from app.p2p.signals import Arrived
from app.p2p.supervisor import Supervisor
from app.p2p.worker_id import worker_id

log = logging.getLogger(__name__)


def work(options: P2pOptions, extra: list[str] | None) -> int:
    """Serve until SIGTERM or SIGINT; raises `WorkerError` when rpc-server cannot be kept running."""
    onefile.mark()
    launch.leave_no_core()
    _check(options)
    authorities = join(options, os.environ)
    arguments = server_args.join(options.llama_cpp_args, extra, options.device)
    if options.cache == "on" and not (options.no_runner or options.server):
        arguments = with_cache(arguments, os.environ)
    carried = embedded.payload()
    runner = runner_of(options, arguments, carried, os.environ)
    events: SimpleQueue[ServerState | Arrived] = SimpleQueue()
    sys.unraisablehook = _log_unraisable

    listener = listen(*parse_address(options.listen, "--listen"))
    port: int = listener.getsockname()[1]
    identity = worker_id(options.id, options.instance, options.state_dir, port, os.environ)
    # The keeper before any thread, and before signals are held back: it would pass that on to the server.
    keeper = None if runner is None else start_keeper(options.sandbox)
    signals.block()
    signals.listen(events.put)
    try:
        lender = Lender()

        def changed(state: ServerState) -> None:
            lender.server_changed(state)
            events.put(state)

        server = _server(options, keeper, runner, carried, changed)
        about = _about(options, identity.text, carried, keeper)
        context = server_context([mint(authority, Role.WORKER, identity.text) for authority in authorities])
        relay = Relay(context, about, server, lender)
        announcer = Announcer(
            identity.text,
            [authority.network for authority in authorities],
            port=port,
            protocol=PROTOCOL,
            interfaces=options.interface,
            advertise=options.advertise,
            enabled=not options.no_mdns,
        )
        log.info("%s (id %s) listens on %s port %d", about.name, about.id, listener.getsockname()[0], port)
        lender.start(server)
        relay.start([listener])
        server.start()
        try:
            _follow(events, announcer, carried.manifest.native.rpc_protocol)
        finally:
            systemd.notify(os.environ, systemd.STOPPING)
            announcer.close()
            relay.stop()
            server.stop()
    finally:
        if keeper is not None:
            keeper.close()
    return ExitCode.OK


def _check(options: P2pOptions) -> None:
    if options.no_runner and options.sandbox == "on":
        raise usage_error("--sandbox on cannot be had with --no-runner", "a server that you start is yours to sandbox")
    if options.no_runner and options.server:
        raise usage_error(
            "--server cannot be had with --no-runner",
            "--server runs an rpc-server of yours, --no-runner relays to one that you start",
        )
    foreign = "--server" if options.server else "--no-runner" if options.no_runner else ""
    if foreign and (options.device or options.require_gpu or options.backend_dir):
        raise usage_error(
            f"--device, --require-gpu and --backend-dir cannot be had with {foreign}",
            "a server of yours has the devices that you give it",
        )
    if options.runner_address != "127.0.0.1" and not options.no_runner:
        log.warning("the runner address counts with --no-runner only; our own rpc-server is reached on loopback")


def _server(
    options: P2pOptions, keeper: Keeper | None, runner: Runner | None, carried: Payload, changed: OnChange
) -> RpcServer:
    if keeper is None or runner is None:
        address = (options.runner_address, options.runner_port or server_args.DEFAULT_PORT)
        return ExternalServer(address, rpc.Prober(), changed)
    return Supervisor(
        keeper,
        runner.prepare,
        runner.probe,
        changed,
        start_timeout=options.start_timeout,
        port=options.runner_port,
        after_vain_start=runner.after_vain_start,
        advice=runner.advice,
        cache=ServerCache(options.cache_size, partial(tool.whole, carried, options.backend_assets_path, os.environ)),
    )


def _about(options: P2pOptions, identity: str, carried: Payload, keeper: Keeper | None) -> About:
    native = carried.manifest.native
    ours = keeper is not None and not options.server
    return About(
        id=identity,
        # Heads read it inside TLS; nobody else does.
        name=clean(options.name or platform.node(), MAX_NAME),
        version=__version__,
        llama_cpp=native.llama_cpp if ours else "",
        llama_cpp_commit=native.commit if ours else "",
        sandbox=lambda: "" if keeper is None else keeper.sandbox,
    )


def _follow(events: SimpleQueue[ServerState | Arrived], announcer: Announcer, carried: str) -> None:
    """Announce while the server is well; return when the user wants an end, raise when it has come without.

    `carried` is the RPC protocol of the llama.cpp that this file carries.
    """
    while True:
        event = events.get()
        if isinstance(event, Arrived):
            if event.ends:
                return
            continue
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, Ready):
            for device in event.devices:
                log.info(
                    "%s: %s, %d of %d MiB free", device.name, device.description, device.free >> 20, device.total >> 20
                )
            log.info("ready, RPC protocol %s", event.protocol)
            if not rpc.serves(event.protocol, carried):
                log.warning(
                    "rpc-server speaks RPC protocol %s, the llama.cpp that this file carries %s: "
                    "heads need one that speaks as the server does",
                    event.protocol,
                    carried,
                )
            announcer.announce(event.protocol)
            systemd.notify(os.environ, systemd.READY, systemd.status(f"ready, RPC protocol {event.protocol}"))
        else:
            announcer.withdraw()
            if isinstance(event, Down):
                systemd.notify(os.environ, systemd.status(event.reason))


def _log_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """What cannot be raised, such as a server name that is not ASCII inside OpenSSL's callback: no traceback for it."""
    log.debug("%s: %s", unraisable.err_msg or "ignored", unraisable.exc_value)
