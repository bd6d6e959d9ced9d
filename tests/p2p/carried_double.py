"""`python -m tests.p2p.carried_double serve ...`: the command line, with a test's programs for the carried ones.

Only the unpacking is replaced: CARRIED_DOUBLE is a directory with a llama-server and a llama-bench.
PATIENCE shortens `serving.PATIENCE`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from app import cli, p2p
from app.p2p import carried, programs, serving
from app.p2p.programs import Program


def prepare(name: str, environ: Mapping[str, str], assets_path: str | None) -> Program:
    return Program(Path(os.environ["CARRIED_DOUBLE"]) / name, dict(environ), ())


if __name__ == "__main__":
    programs.prepare = prepare
    carried._rpc_protocol = lambda: "7.0.0"
    serving.PATIENCE = float(os.environ.get("PATIENCE", serving.PATIENCE))
    sys.exit(cli.main(sys.argv, p2p))
