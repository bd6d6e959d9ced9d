"""The `llama-cpp-rpc` command: unpack the carried rpc-server and become it."""

from __future__ import annotations

import logging
import os

from app import embedded, launch, onefile, payload, server_args
from app.backends.start import Arranger
from app.errors import usage_error
from app.options import LlamaCppRpcOptions

log = logging.getLogger(__name__)


def run(options: LlamaCppRpcOptions, extra: list[str] | None) -> int:
    """Become rpc-server; returns only by raising.

    A bare command is a usage error, as LocalAI has it; a `--` with nothing behind
    it asks for the server's defaults.
    """
    if extra is None and not options.llama_cpp_args:
        raise usage_error(
            "usage: worker llama-cpp-rpc -- <llama-rpc-server-args>",
            "`worker llama-cpp-rpc --` runs the server with its defaults",
        )
    onefile.mark()
    arguments = server_args.join(options.llama_cpp_args, extra, options.device)
    carried = embedded.payload()
    checked = server_args.check(arguments, carried.manifest.server_options)
    if "--help" in checked.given:
        assets = payload.ensure(carried, options.backend_assets_path, os.environ)
        launch.become(launch.server_command(assets, arguments, os.environ), [assets.fd])
    arranger = Arranger(
        carried, arguments, checked.devices, os.environ,
        assets_path=options.backend_assets_path, backend_dir=options.backend_dir,
        require_gpu=options.require_gpu,
    )  # fmt: skip
    server_args.check_port(checked.host, checked.port)
    start = arranger.prepare()
    for device in start.plan.served:
        log.info("serving %s: %s", device.name, device.description)
    launch.become(start.command, start.held)
