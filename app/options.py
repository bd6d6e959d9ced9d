"""A dataclass of options for each command, and what the environment fills in.

No `from __future__ import annotations` and no `X | None` here: argparse-dataclass
2.0.0 calls the annotation to convert a value ("'int' is not callable").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Optional, TypeVar

from app.errors import usage_error

LOG_LEVELS = ("error", "warn", "info", "debug", "trace")
DEFAULT_ASSETS_PATH = "/tmp/localai/backend_data"  # noqa: S108 - LocalAI's; directories.py defends it
DEFAULT_PORT = 25052
"""Where a worker's relay listens: outside Linux's ephemeral ports, so that a firewall rule can name it."""
DEFAULT_BASE_PORT = 26001
"""The first loopback port of a head's tunnels, outside the ephemeral ports for the same reason."""

TOKEN_VARIABLES = ("LOCALAI_TOKEN", "LOCALAI_P2P_TOKEN", "TOKEN")
"""LocalAI's; the first that is not empty wins."""

_MAX_SECONDS = 86_400.0
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")

OptionsT = TypeVar("OptionsT")


def _option(
    *flags: str,
    help: str,
    env: Sequence[str] = (),
    fallback: Any = None,
    metavar: Optional[str] = None,
    choices: Optional[Sequence[str]] = None,
    convert: Any = None,
    secret: bool = False,
) -> Any:
    """A field whose flag may be left open: then the environment decides, then `fallback`."""
    notes = [f"default: {fallback}"] if fallback not in (None, "", ()) else []
    if env:
        notes.append("environment: " + ", ".join(env))
    metadata = {
        "args": list(flags),
        "help": (help + (f" ({'; '.join(notes)})" if notes else "")).replace("%", "%%"),
        "metavar": metavar,
        "choices": choices,
        "env": tuple(env),
        "fallback": fallback,
    }
    if convert is not None:
        metadata["type"] = convert
    return field(default=None, metadata=metadata, repr=not secret)


def _switch(*flags: str, help: str, env: Sequence[str] = ()) -> Any:
    """A flag without a value, off unless it is given or the environment says so."""
    notes = f" (environment: {', '.join(env)})" if env else ""
    return field(default=False, metadata={"args": list(flags), "help": help + notes, "env": tuple(env)})


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number <= _MAX_SECONDS:  # neither infinite nor "nan"
        raise ValueError
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


# What argparse calls them in its complaint.
_port.__name__, _seconds.__name__, _count.__name__ = "port", "number of seconds", "number"


def _split_list(text: str) -> tuple[str, ...]:
    """`a,b` -> ("a", "b"); a repeated flag arrives here joined by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _log_level() -> Any:
    return _option(
        "--log-level",
        help="how much is logged",
        env=("LOCALAI_LOG_LEVEL",),
        fallback="info",
        metavar="LEVEL",
        choices=LOG_LEVELS,
    )


def _assets_path() -> Any:
    return _option(
        "--backend-assets-path",
        help=f"where the carried files are unpacked (default: {DEFAULT_ASSETS_PATH})",
        env=("LOCALAI_BACKEND_ASSETS_PATH", "BACKEND_ASSETS_PATH"),
        metavar="DIR",
    )


def _backend_dir() -> Any:
    return _option(
        "--backend-dir",
        help="a directory of your own libggml-*.so, loaded besides the carried ones",
        env=("WORKER_BACKEND_DIR",),
        metavar="DIR",
    )


def _device() -> Any:
    return _option(
        "--device",
        help="serve these devices only, slow ones too; `worker devices` names them (repeatable)",
        metavar="NAME",
        fallback=(),
        convert=_split_list,
    )


def _require_gpu() -> Any:
    return _switch(
        "--require-gpu", help="fail, with the reasons, where only the CPU could be served", env=("WORKER_REQUIRE_GPU",)
    )


def _llama_cpp_args() -> Any:
    return _option(
        "--llama-cpp-args",
        "--extra-llama-cpp-args",
        help="more arguments for rpc-server, split as a shell would",
        env=("LOCALAI_EXTRA_LLAMA_CPP_ARGS", "EXTRA_LLAMA_CPP_ARGS"),
        metavar="ARGS",
    )


def _token() -> Any:
    return _option(
        "--token",
        help="the shared token; everybody on this machine sees a flag, so prefer --token-file or the environment",
        env=TOKEN_VARIABLES,
        metavar="TOKEN",
        secret=True,
    )


def _token_file() -> Any:
    return _option("--token-file", help="a file that holds the token, or two of them, one a line", metavar="FILE")


def _network_id() -> Any:
    return _option(
        "--network-id",
        "--p2p-network-id",
        "--peer2peer-network-id",
        help="only members of the same network see each other",
        env=("LOCALAI_P2P_NETWORK_ID", "P2P_NETWORK_ID"),
        fallback="",
        metavar="ID",
    )


def _interface() -> Any:
    return _option(
        "--interface",
        help="announce and look on these interfaces only (repeatable)",
        metavar="NAME",
        fallback=(),
        convert=_split_list,
    )


def _no_mdns() -> Any:
    return _switch("--no-mdns", help="neither announce nor look by multicast")


def _peer() -> Any:
    return _option(
        "--peer",
        help="a worker to dial whether or not it is announced (repeatable)",
        env=("WORKER_PEERS",),
        metavar="HOST:PORT",
        fallback=(),
        convert=_split_list,
    )


def _peers_file() -> Any:
    return _option("--peers-file", help="a file of HOST:PORT lines, # for comments", metavar="FILE")


def _timeout() -> Any:
    return _option("--timeout", help="seconds to wait for workers", metavar="S", fallback=30.0, convert=_seconds)


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
class P2pOptions:
    """`worker p2p-llama-cpp-rpc`"""

    token: Optional[str] = _token()
    token_file: Optional[str] = _token_file()
    network_id: str = _network_id()
    listen: str = _option(
        "--listen",
        help="where the relay listens; port 0 takes any",
        metavar="ADDR:PORT",
        fallback=f"[::]:{DEFAULT_PORT}",
    )
    advertise: Optional[str] = _option(
        "--advertise", help="the address that is announced in place of the machine's own", metavar="ADDR[:PORT]"
    )
    interface: tuple[str, ...] = _interface()
    no_mdns: bool = _no_mdns()
    name: Optional[str] = _option("--name", help="the name that heads show and sort by", metavar="NAME")
    instance: str = _option(
        "--instance", help="tells several workers on one machine apart", metavar="NAME", fallback="default"
    )
    state_dir: Optional[str] = _option("--state-dir", help="where the worker id is kept", metavar="DIR")
    id: Optional[str] = _option("--id", help="the worker id, in place of the kept one", metavar="ID")
    sandbox: str = _option(
        "--sandbox",
        help="shut rpc-server in: a network, files and system calls of its own",
        metavar="WHEN",
        choices=("auto", "on", "off"),
        fallback="auto",
    )
    start_timeout: float = _option(
        "--start-timeout",
        help="seconds until rpc-server must answer after a start",
        metavar="S",
        fallback=60.0,
        convert=_seconds,
    )
    no_runner: bool = _switch(
        "--no-runner",
        help="start no rpc-server: relay to the one at the runner address",
        env=("LOCALAI_NO_RUNNER", "NO_RUNNER"),
    )
    runner_address: str = _option(
        "--runner-address",
        help="where rpc-server listens",
        env=("LOCALAI_RUNNER_ADDRESS", "RUNNER_ADDRESS"),
        metavar="ADDR",
        fallback="127.0.0.1",
    )
    runner_port: Optional[int] = _option(
        "--runner-port",
        help="the port of rpc-server (default: a free one)",
        env=("LOCALAI_RUNNER_PORT", "RUNNER_PORT"),
        metavar="PORT",
        convert=_port,
    )
    device: tuple[str, ...] = _device()
    require_gpu: bool = _require_gpu()
    backend_dir: Optional[str] = _backend_dir()
    backend_assets_path: Optional[str] = _assets_path()
    llama_cpp_args: Optional[str] = _llama_cpp_args()
    log_level: str = _log_level()


@dataclass(frozen=True)
class ConnectOptions:
    """`worker connect`"""

    token: Optional[str] = _token()
    token_file: Optional[str] = _token_file()
    network_id: str = _network_id()
    workers: Optional[int] = _option("--workers", help="wait for this many workers", metavar="N", convert=_count)
    only: tuple[str, ...] = _option(
        "--only",
        help="use these workers only (name or id, repeatable)",
        metavar="NAME",
        fallback=(),
        convert=_split_list,
    )
    exclude: tuple[str, ...] = _option(
        "--exclude",
        help="leave these workers out (name or id, repeatable)",
        metavar="NAME",
        fallback=(),
        convert=_split_list,
    )
    timeout: float = _timeout()
    peer: tuple[str, ...] = _peer()
    peers_file: Optional[str] = _peers_file()
    no_mdns: bool = _no_mdns()
    interface: tuple[str, ...] = _interface()
    base_port: int = _option(
        "--base-port",
        help="the first loopback port of the tunnels",
        metavar="P",
        fallback=DEFAULT_BASE_PORT,
        convert=_port,
    )
    log_level: str = _log_level()


@dataclass(frozen=True)
class ListOptions:
    """`worker list`"""

    token: Optional[str] = _token()
    token_file: Optional[str] = _token_file()
    network_id: str = _network_id()
    json: bool = _switch("--json", help="print JSON")
    watch: bool = _switch("--watch", help="stay and show what changes")
    timeout: float = _option(
        "--timeout", help="seconds to look for workers", metavar="S", fallback=3.0, convert=_seconds
    )
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

    json: bool = _switch("--json", help="print JSON")
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
class VersionOptions:
    """`worker version`"""

    json: bool = _switch("--json", help="print JSON")
    log_level: str = _log_level()


@dataclass(frozen=True)
class LicensesOptions:
    """`worker licenses`"""

    log_level: str = _log_level()


def fill(options: OptionsT, environ: Mapping[str, str]) -> OptionsT:
    """`options` with what flags left open taken from `environ`, then from the defaults.

    Of several variables the first that is not empty wins. Raises a usage error
    that names the variable whose value cannot be used.
    """
    filled: dict[str, Any] = {}
    for spec in fields(options):  # type: ignore[arg-type]
        if getattr(options, spec.name) is not (False if spec.type is bool else None):
            continue
        names = spec.metadata.get("env", ())
        name = next((name for name in names if environ.get(name)), None)
        if name is not None:
            filled[spec.name] = _from_environment(name, environ[name], spec)
        elif spec.metadata.get("fallback") is not None:
            filled[spec.name] = spec.metadata["fallback"]
    return replace(options, **filled)  # type: ignore[type-var]


def _from_environment(name: str, text: str, spec: Any) -> Any:
    if spec.type is bool:
        if text.lower() not in _TRUE + _FALSE:
            raise usage_error(f"{name} is neither true nor false", f"set {name} to true or false, or unset it")
        return text.lower() in _TRUE
    choices = spec.metadata.get("choices")
    if choices and text not in choices:
        raise usage_error(f"{name} must be one of {', '.join(choices)}", f"correct or unset {name}")
    try:
        return spec.metadata.get("type", str)(text)
    except ValueError:
        raise usage_error(f"{name} has a value that cannot be used", f"correct or unset {name}") from None
