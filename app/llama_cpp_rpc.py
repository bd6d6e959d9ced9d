"""The `llama-cpp-rpc` command: unpack the carried rpc-server and become it."""

from __future__ import annotations

import os

from app import embedded, launch, onefile, payload, server_args
from app.errors import usage_error
from app.options import LlamaCppRpcOptions


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
    arguments = server_args.join(options.llama_cpp_args, extra)
    carried = embedded.payload()
    checked = server_args.check(arguments, carried.manifest.server_options)
    assets = payload.ensure(carried, options.backend_assets_path, os.environ)
    if "--help" not in checked.given:
        server_args.check_port(checked.host, checked.port)
    launch.become(assets, launch.server_command(assets, arguments, os.environ))
