"""The p2p room: what the command line needs of it. The small build has `p2p_stub` in its place.

Each command is imported when it is run: `llama-cpp-rpc` pays for none of it.
"""

from __future__ import annotations

from app import late
from app.options import BenchOptions, ConnectOptions, ListOptions, P2pOptions, ServeOptions, TokenOptions

SUPPORTED = True


def work(options: P2pOptions, extra: list[str] | None) -> int:
    """`worker p2p-llama-cpp-rpc`"""
    _prepare()
    from app.p2p.worker import work as run

    return run(options, extra)


def connect(options: ConnectOptions, extra: list[str] | None) -> int:
    """`worker connect`"""
    _prepare()
    from app.p2p.head import connect as run

    return run(options, extra)


def serve(options: ServeOptions, extra: list[str] | None) -> int:
    """`worker serve`"""
    _prepare()
    from app.p2p.carried import serve as run

    return run(options, extra)


def bench(options: BenchOptions, extra: list[str] | None) -> int:
    """`worker bench`"""
    _prepare()
    from app.p2p.carried import bench as run

    return run(options, extra)


def list_workers(options: ListOptions, extra: list[str] | None) -> int:
    """`worker list`"""
    _prepare()
    from app.p2p.head import list_workers as run

    return run(options, extra)


def new_token(options: TokenOptions, extra: list[str] | None) -> int:  # noqa: ARG001 - every command has both
    """`worker token`"""
    late.unpack()
    from app.p2p.token import generate

    print(generate())
    return 0


def _prepare() -> None:
    """For what opens connections, in threads."""
    late.unpack()
    from app.p2p.libc import bound_heaps

    bound_heaps()
