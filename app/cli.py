"""argv -> one command; the only place that prints an error and chooses the exit code."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NoReturn, Protocol

from argparse_dataclass import ArgumentParser

from app import about, assets, console, llama_cpp_rpc, onefile
from app.backends import devices
from app.cache import command as cache
from app.errors import ExitCode, WorkerError, usage_error
from app.fields import fill, split_list
from app.options import (
    AssetsOptions,
    BenchOptions,
    CacheAddOptions,
    CacheListOptions,
    CachePruneOptions,
    CacheVerifyOptions,
    ConnectOptions,
    DevicesOptions,
    LicensesOptions,
    ListOptions,
    LlamaCppRpcOptions,
    P2pOptions,
    ServeOptions,
    TokenOptions,
    VersionOptions,
)

PROG = "worker"


class P2pRoom(Protocol):
    """What both `p2p` and `p2p_stub` offer."""

    @property
    def SUPPORTED(self) -> bool: ...
    @property
    def work(self) -> Callable[[P2pOptions, list[str] | None], int]: ...
    @property
    def connect(self) -> Callable[[ConnectOptions, list[str] | None], int]: ...
    @property
    def serve(self) -> Callable[[ServeOptions, list[str] | None], int]: ...
    @property
    def bench(self) -> Callable[[BenchOptions, list[str] | None], int]: ...
    @property
    def list_workers(self) -> Callable[[ListOptions, list[str] | None], int]: ...
    @property
    def new_token(self) -> Callable[[TokenOptions, list[str] | None], int]: ...


@dataclass(frozen=True)
class Command:
    """One command word: its options, what runs it, and what `--help` says."""

    options: type
    run: Callable[[Any, list[str] | None], int]
    help: str
    rest: str = ""
    """What may follow `--`; empty when nothing may."""
    needs_p2p: bool = False


def _commands(p2p: P2pRoom) -> dict[str, Command]:
    return {
        "llama-cpp-rpc": Command(
            LlamaCppRpcOptions,
            llama_cpp_rpc.run,
            "unpack the carried rpc-server and become it",
            "llama-rpc-server-args",
        ),
        "p2p-llama-cpp-rpc": Command(
            P2pOptions,
            p2p.work,
            "run rpc-server behind an encrypted relay that heads find",
            "llama-rpc-server-args",
            True,
        ),
        "connect": Command(
            ConnectOptions, p2p.connect, "on the head: find workers, open tunnels, run a command", "command", True
        ),
        "serve": Command(
            ServeOptions, p2p.serve, "on the head: run llama-server on the workers", "llama-server-args", True
        ),
        "bench": Command(
            BenchOptions, p2p.bench, "on the head: run llama-bench on the workers", "llama-bench-args", True
        ),
        "list": Command(ListOptions, p2p.list_workers, "who is there, with which devices", needs_p2p=True),
        "token": Command(TokenOptions, p2p.new_token, "print a new token", needs_p2p=True),
        "devices": Command(DevicesOptions, devices.run, "what this machine would offer, and why a GPU is not used"),
        "assets": Command(AssetsOptions, assets.run, "what is unpacked: path, verify, prune"),
        "cache add": Command(
            CacheAddOptions, cache.add, "put a model's weights on this disk, so that heads need not send them"
        ),
        "cache list": Command(CacheListOptions, cache.show, "the weights on this disk"),
        "cache verify": Command(CacheVerifyOptions, cache.verify, "check the weights on this disk, remove wrong ones"),
        "cache prune": Command(CachePruneOptions, cache.prune, "remove weights that were not used for longest"),
        "version": Command(VersionOptions, about.version, "what this file is and carries"),
        "licenses": Command(LicensesOptions, about.licenses, "the licences of what this file carries"),
    }


def main(argv: list[str], p2p: P2pRoom, environ: Mapping[str, str] | None = None) -> int:
    """Run the command line `argv` (program name first) and return the exit code.

    `p2p` is the package, or the stub of a build without it.
    """
    onefile.tie_to_bootloader()
    try:
        return int(_run(argv[1:], p2p, os.environ if environ is None else environ))
    except WorkerError as error:
        console.print_error(error.message, error.hint)
        return int(error.code)
    except KeyboardInterrupt:  # before a command minds its signals
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our stdout has gone; nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.FAILED)


def _run(words: list[str], p2p: P2pRoom, environ: Mapping[str, str]) -> int:
    commands = _commands(p2p)
    ours, extra = _split(words)
    if ours[:1] == [PROG]:  # `local-ai worker ...` through a symbolic link
        ours = ours[1:]
    if not ours or ours[0] in ("-h", "--help", "help"):
        print(_overview(commands))
        return ExitCode.OK if ours else ExitCode.USAGE
    if ours[0] == "--version":
        ours[0] = "version"
    words_of_name = 2 if " ".join(ours[:2]) in commands else 1
    name, flags = " ".join(ours[:words_of_name]), ours[words_of_name:]
    command = commands.get(name)
    if command is None:
        raise usage_error(f"unknown command: {name}", f"commands: {', '.join(commands)}")
    if command.needs_p2p and not p2p.SUPPORTED:
        return command.run(None, extra)  # the stub's error, whatever the flags are
    if extra is not None and not command.rest:
        raise usage_error(f"{name} takes nothing after --", f"see {PROG} {name} --help")
    options = fill(_parse(name, command, flags), environ)
    console.start_logging(options.log_level)
    return command.run(options, extra)


def _split(words: list[str]) -> tuple[list[str], list[str] | None]:
    """What stands before the first `--`, and what follows it; None when there is none."""
    if "--" not in words:
        return words[:], None
    at = words.index("--")
    return words[:at], words[at + 1 :]


class _Parser(ArgumentParser[Any]):
    """argparse whose complaint is a `WorkerError` like every other."""

    def error(self, message: str) -> NoReturn:
        raise usage_error(message, f"see {self.prog} --help")


def _parse(name: str, command: Command, flags: list[str]) -> Any:
    parser = _Parser(
        command.options,
        prog=f"{PROG} {name}",
        usage=None if not command.rest else f"%(prog)s [flags] -- <{command.rest}>",
        description=command.help,
        allow_abbrev=False,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=32),
    )
    return parser.parse_args(_fold(command.options, flags))


def _fold(options: type, flags: list[str]) -> list[str]:
    """Join what argparse would lose.

    `--peer A --peer B` becomes `--peer=A,B` (only the last would be kept), and
    `--llama-cpp-args -c` becomes `--llama-cpp-args=-c` (a value that begins with
    a dash would be taken for a flag).
    """
    joined = ("--llama-cpp-args", "--extra-llama-cpp-args")
    lists_of = [spec for spec in fields(options) if spec.metadata.get("type") is split_list]
    repeated = [flag for spec in lists_of for flag in spec.metadata["args"]]
    lists: dict[str, list[str]] = {}
    folded = []
    rest = iter(flags)
    for flag in rest:
        word, equals, value = flag.partition("=")
        if (word in joined or word in repeated) and not equals:
            given = next(rest, None)
            if given is None:
                folded.append(word)
                break
            value = given
        if word in repeated:
            lists.setdefault(word, []).append(value)
        elif word in joined:
            folded.append(f"{word}={value}")
        else:
            folded.append(flag)
    return folded + [f"{word}={','.join(values)}" for word, values in lists.items()]


def _overview(commands: dict[str, Command]) -> str:
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in commands.items()]
    return "\n".join(
        [
            f"usage: {PROG} COMMAND [flags] [-- ARGS]",
            "",
            "Lends this machine to a llama.cpp cluster.",
            "",
            *lines,
            "",
            f"`{PROG} COMMAND --help` tells the flags of a command and the environment names.",
        ]
    )
