"""A dataclass of options for each command.

No `from __future__ import annotations` and no `X | None` here: argparse-dataclass
2.0.0 calls the annotation to convert a value ("'int' is not callable").
"""

from dataclasses import dataclass, field
from typing import Any, Optional

from app.fields import count, option, port, seconds, size, split_list, switch

LOG_LEVELS = ("error", "warn", "info", "debug", "trace")
DEFAULT_ASSETS_PATH = "/tmp/localai/backend_data"  # noqa: S108 - LocalAI's; directories.py defends it
DEFAULT_PORT = 25052
"""Where a worker's relay listens: outside Linux's ephemeral ports, so that a firewall rule can name it."""
DEFAULT_BASE_PORT = 26001
"""The first loopback port of a head's tunnels, outside the ephemeral ports for the same reason."""

DEFAULT_CACHE_SIZE = 50 << 30
"""Bytes of weights that are kept: a large quantized model."""

TOKEN_VARIABLES = ("LOCALAI_TOKEN", "LOCALAI_P2P_TOKEN", "TOKEN")
"""LocalAI's; the first that is not empty wins."""


def _log_level() -> Any:
    return option(
        "--log-level",
        help="how much is logged",
        env=("LOCALAI_LOG_LEVEL",),
        fallback="info",
        metavar="LEVEL",
        choices=LOG_LEVELS,
    )


def _assets_path() -> Any:
    return option(
        "--backend-assets-path",
        help=f"where the carried files are unpacked (default: {DEFAULT_ASSETS_PATH})",
        env=("LOCALAI_BACKEND_ASSETS_PATH", "BACKEND_ASSETS_PATH"),
        metavar="DIR",
    )


def _backend_dir() -> Any:
    return option(
        "--backend-dir",
        help="a directory of your own libggml-*.so, loaded besides the carried ones",
        env=("WORKER_BACKEND_DIR",),
        metavar="DIR",
    )


def _device() -> Any:
    return option(
        "--device",
        help="serve these devices only, slow ones too; `worker devices` names them (repeatable)",
        metavar="NAME",
        fallback=(),
        convert=split_list,
    )


def _require_gpu() -> Any:
    return switch(
        "--require-gpu", help="fail, with the reasons, where only the CPU could be served", env=("WORKER_REQUIRE_GPU",)
    )


def _llama_cpp_args() -> Any:
    return option(
        "--llama-cpp-args",
        "--extra-llama-cpp-args",
        help="more arguments for rpc-server, split as a shell would",
        env=("LOCALAI_EXTRA_LLAMA_CPP_ARGS", "EXTRA_LLAMA_CPP_ARGS"),
        metavar="ARGS",
    )


def _interface() -> Any:
    return option(
        "--interface",
        help="announce and look on these interfaces only (repeatable)",
        metavar="NAME",
        fallback=(),
        convert=split_list,
    )


def _no_mdns() -> Any:
    return switch("--no-mdns", help="neither announce nor look by multicast")


def _peer() -> Any:
    return option(
        "--peer",
        help="a worker to dial whether or not it is announced (repeatable)",
        env=("WORKER_PEERS",),
        metavar="HOST:PORT",
        fallback=(),
        convert=split_list,
    )


def _peers_file() -> Any:
    return option("--peers-file", help="a file of HOST:PORT lines, # for comments", metavar="FILE")


def _timeout() -> Any:
    return option("--timeout", help="seconds to wait for workers", metavar="S", fallback=30.0, convert=seconds)


def _cache_size(flag: str, help: str) -> Any:
    return option(
        flag,
        help=help,
        env=("WORKER_CACHE_SIZE",),
        fallback=DEFAULT_CACHE_SIZE,
        fallback_text="50G",
        metavar="SIZE",
        convert=size,
    )


@dataclass(frozen=True)
class LlamaCppRpcOptions:
    """`worker llama-cpp-rpc`"""

    device: tuple[str, ...] = _device()
    require_gpu: bool = _require_gpu()
    backend_dir: Optional[str] = _backend_dir()
    backend_assets_path: Optional[str] = _assets_path()
    llama_cpp_args: Optional[str] = _llama_cpp_args()
    log_level: str = _log_level()


@dataclass(frozen=True)
class NetworkOptions:
    """What every command has that belongs to a network."""

    token: Optional[str] = option(
        "--token",
        help="the shared token; everybody on this machine sees a flag, so prefer --token-file or the environment",
        env=TOKEN_VARIABLES,
        metavar="TOKEN",
        secret=True,
    )
    token_file: Optional[str] = option(
        "--token-file", help="a file that holds the token, or two of them, one a line", metavar="FILE"
    )
    network_id: str = option(
        "--network-id",
        "--p2p-network-id",
        "--peer2peer-network-id",
        help="only members of the same network see each other",
        env=("LOCALAI_P2P_NETWORK_ID", "P2P_NETWORK_ID"),
        fallback="",
        metavar="ID",
    )


@dataclass(frozen=True)
class P2pOptions(NetworkOptions):
    """`worker p2p-llama-cpp-rpc`"""

    listen: str = option(
        "--listen",
        help="where the relay listens; port 0 takes any",
        metavar="ADDR:PORT",
        fallback=f"[::]:{DEFAULT_PORT}",
    )
    advertise: Optional[str] = option(
        "--advertise", help="the address that is announced in place of the machine's own", metavar="ADDR[:PORT]"
    )
    interface: tuple[str, ...] = _interface()
    no_mdns: bool = _no_mdns()
    name: Optional[str] = option("--name", help="the name that heads show and sort by", metavar="NAME")
    instance: str = option(
        "--instance", help="tells several workers on one machine apart", metavar="NAME", fallback="default"
    )
    state_dir: Optional[str] = option("--state-dir", help="where the worker id is kept", metavar="DIR")
    id: Optional[str] = option("--id", help="the worker id, in place of the kept one", metavar="ID")
    sandbox: str = option(
        "--sandbox",
        help="shut rpc-server in: a network, files and system calls of its own",
        metavar="WHEN",
        choices=("auto", "on", "off"),
        fallback="auto",
    )
    start_timeout: float = option(
        "--start-timeout",
        help="seconds until rpc-server must answer after a start",
        metavar="S",
        fallback=60.0,
        convert=seconds,
    )
    server: Optional[str] = option(
        "--server",
        help="run this rpc-server of yours, of whatever llama.cpp, in place of the carried one",
        env=("WORKER_SERVER",),
        metavar="PATH",
    )
    cache: str = option(
        "--cache",
        help="keep weights on this disk, so that heads need not send them again",
        env=("WORKER_CACHE",),
        metavar="WHEN",
        choices=("on", "off"),
        fallback="on",
    )
    cache_size: int = _cache_size("--cache-size", "keep no more than this; a twentieth of the disk stays free as well")
    no_runner: bool = switch(
        "--no-runner",
        help="start no rpc-server: relay to the one at the runner address",
        env=("LOCALAI_NO_RUNNER", "NO_RUNNER"),
    )
    runner_address: str = option(
        "--runner-address",
        help="where rpc-server listens",
        env=("LOCALAI_RUNNER_ADDRESS", "RUNNER_ADDRESS"),
        metavar="ADDR",
        fallback="127.0.0.1",
    )
    runner_port: Optional[int] = option(
        "--runner-port",
        help="the port of rpc-server (default: a free one)",
        env=("LOCALAI_RUNNER_PORT", "RUNNER_PORT"),
        metavar="PORT",
        convert=port,
    )
    device: tuple[str, ...] = _device()
    require_gpu: bool = _require_gpu()
    backend_dir: Optional[str] = _backend_dir()
    backend_assets_path: Optional[str] = _assets_path()
    llama_cpp_args: Optional[str] = _llama_cpp_args()
    log_level: str = _log_level()


@dataclass(frozen=True)
class ConnectOptions(NetworkOptions):
    """`worker connect`"""

    workers: Optional[int] = option("--workers", help="wait for this many workers", metavar="N", convert=count)
    only: tuple[str, ...] = option(
        "--only",
        help="use these workers only (name or id, repeatable)",
        metavar="NAME",
        fallback=(),
        convert=split_list,
    )
    exclude: tuple[str, ...] = option(
        "--exclude",
        help="leave these workers out (name or id, repeatable)",
        metavar="NAME",
        fallback=(),
        convert=split_list,
    )
    timeout: float = _timeout()
    peer: tuple[str, ...] = _peer()
    peers_file: Optional[str] = _peers_file()
    no_mdns: bool = _no_mdns()
    interface: tuple[str, ...] = _interface()
    base_port: int = option(
        "--base-port",
        help="the first loopback port of the tunnels",
        metavar="P",
        fallback=DEFAULT_BASE_PORT,
        convert=port,
    )
    log_level: str = _log_level()


@dataclass(frozen=True)
class BenchOptions(ConnectOptions):
    """`worker bench`"""

    backend_assets_path: Optional[str] = _assets_path()


@dataclass(frozen=True)
class ServeOptions(BenchOptions):
    """`worker serve`"""

    no_restart: bool = switch(
        "--no-restart", help="end with llama-server, rather than start it again when a worker is lost"
    )


@dataclass(frozen=True)
class ListOptions(NetworkOptions):
    """`worker list`"""

    json: bool = switch("--json", help="print JSON")
    watch: bool = switch("--watch", help="stay and show what changes")
    timeout: float = option("--timeout", help="seconds to look for workers", metavar="S", fallback=3.0, convert=seconds)
    peer: tuple[str, ...] = _peer()
    peers_file: Optional[str] = _peers_file()
    no_mdns: bool = _no_mdns()
    interface: tuple[str, ...] = _interface()
    log_level: str = _log_level()


@dataclass(frozen=True)
class TokenOptions:
    """`worker token`"""

    log_level: str = _log_level()


@dataclass(frozen=True)
class DevicesOptions:
    """`worker devices`"""

    json: bool = switch("--json", help="print JSON")
    backend_dir: Optional[str] = _backend_dir()
    backend_assets_path: Optional[str] = _assets_path()
    log_level: str = _log_level()


@dataclass(frozen=True)
class AssetsOptions:
    """`worker assets`"""

    action: str = field(
        metadata={
            "args": ["action"],
            "choices": ("path", "verify", "prune"),
            "help": "path: where the carried files are unpacked; verify: check every file of them; "
            "prune: remove what other versions and killed starts left",
        }
    )
    backend_assets_path: Optional[str] = _assets_path()
    log_level: str = _log_level()


@dataclass(frozen=True)
class CacheAddOptions:
    """`worker cache add`"""

    models: list[str] = field(
        metadata={
            "args": ["models"],
            "nargs": "+",
            "metavar": "MODEL.gguf",
            "help": "GGUF files; the first part of a split model stands for all",
        }
    )
    max_size: int = _cache_size("--max-size", "add no more than this, and remove others that make it more")
    json: bool = switch("--json", help="print a line of JSON for each tensor")
    backend_assets_path: Optional[str] = _assets_path()
    log_level: str = _log_level()


@dataclass(frozen=True)
class CacheListOptions:
    """`worker cache list`"""

    json: bool = switch("--json", help="print JSON")
    log_level: str = _log_level()


@dataclass(frozen=True)
class CacheVerifyOptions:
    """`worker cache verify`"""

    backend_assets_path: Optional[str] = _assets_path()
    log_level: str = _log_level()


@dataclass(frozen=True)
class CachePruneOptions:
    """`worker cache prune`"""

    max_size: int = _cache_size("--max-size", "keep no more than this")
    log_level: str = _log_level()


@dataclass(frozen=True)
class VersionOptions:
    """`worker version`"""

    json: bool = switch("--json", help="print JSON")
    log_level: str = _log_level()


@dataclass(frozen=True)
class LicensesOptions:
    """`worker licenses`"""

    log_level: str = _log_level()
