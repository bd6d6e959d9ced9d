"""The RPC protocols of several workers: what a llama.cpp must speak to use them, and whom it would refuse."""

from __future__ import annotations

import re
from collections.abc import Sequence

from app.errors import WorkerError
from app.p2p import rpc
from app.p2p.roster import Worker


def mismatched(workers: Sequence[Worker], client: str) -> list[Worker]:
    """Those that a llama.cpp of RPC protocol `client` refuses."""
    return [worker for worker in workers if not rpc.serves(worker.status.rpc, client)]


def together(one: str, other: str) -> bool:
    """Whether some llama.cpp can use workers of both RPC protocols."""
    return rpc.serves(one, other) or rpc.serves(other, one)


def common(workers: Sequence[Worker]) -> str:
    """The lowest RPC protocol of a llama.cpp that can use all of them. Raises WorkerError where none can."""
    needed = max((worker.status.rpc for worker in workers), key=_order)
    if mismatched(workers, needed):
        raise WorkerError(
            f"the workers speak different RPC protocols: {named(workers)}",
            "give all machines the same version of `worker`, or leave some out with --exclude NAME",
        )
    return needed


def named(workers: Sequence[Worker]) -> str:
    """Such as "desk 7.0.0, attic 4.0.1"."""
    return ", ".join(f"{worker.name} {worker.status.rpc}" for worker in workers)


def _order(version: str) -> list[int]:
    """7.10.0 is above 7.9.0; it is the peer's text and may be anything."""
    return [int(number) for number in re.findall(r"[0-9]{1,4}", version)]
