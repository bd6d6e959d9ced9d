"""What stands where `p2p` stood in a build without it: the same names, each an error."""

from __future__ import annotations

from typing import NoReturn

from app.errors import ExitCode, WorkerError
from app.options import BenchOptions, ConnectOptions, ListOptions, P2pOptions, ServeOptions, TokenOptions

SUPPORTED = False


def work(options: P2pOptions, extra: list[str] | None) -> int:
    """`worker p2p-llama-cpp-rpc`"""
    _refuse()


def connect(options: ConnectOptions, extra: list[str] | None) -> int:
    """`worker connect`"""
    _refuse()


def serve(options: ServeOptions, extra: list[str] | None) -> int:
    """`worker serve`"""
    _refuse()


def bench(options: BenchOptions, extra: list[str] | None) -> int:
    """`worker bench`"""
    _refuse()


def list_workers(options: ListOptions, extra: list[str] | None) -> int:
    """`worker list`"""
    _refuse()


def new_token(options: TokenOptions, extra: list[str] | None) -> int:
    """`worker token`"""
    _refuse()


def _refuse() -> NoReturn:
    raise WorkerError(
        "p2p not enabled",
        "p2p mode is not enabled in this build; take the full `worker`, or build it without --no-p2p",
        ExitCode.NO_P2P,
    )
