"""Goal: flags, environment and defaults in this order, with the names that users of LocalAI know."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from app import cli, p2p_stub
from app.errors import ExitCode, WorkerError
from app.fields import fill, size
from app.options import LlamaCppRpcOptions, P2pOptions


def parse(name: str, *flags: str, **environ: str) -> Any:
    """What the command `name` would be run with."""
    return fill(cli._parse(name, cli._commands(p2p_stub)[name], list(flags)), environ)


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("backend_assets_path", ["LOCALAI_BACKEND_ASSETS_PATH", "BACKEND_ASSETS_PATH"]),
        ("llama_cpp_args", ["LOCALAI_EXTRA_LLAMA_CPP_ARGS", "EXTRA_LLAMA_CPP_ARGS"]),
        ("token", ["LOCALAI_TOKEN", "LOCALAI_P2P_TOKEN", "TOKEN"]),
        ("network_id", ["LOCALAI_P2P_NETWORK_ID", "P2P_NETWORK_ID"]),
        ("runner_address", ["LOCALAI_RUNNER_ADDRESS", "RUNNER_ADDRESS"]),
    ],
)
def test_of_several_variables_the_first_that_is_not_empty_wins(field: str, names: list[str]) -> None:
    for number, name in enumerate(names):
        environ = dict.fromkeys(names[:number], "") | {later: later for later in names[number:]}
        assert getattr(fill(P2pOptions(), environ), field) == name


def test_every_flag_of_a_list_may_be_repeated() -> None:
    commands = cli._commands(p2p_stub)
    lists = [
        (name, spec.name, flag)
        for name, command in commands.items()
        for spec in fields(command.options)
        if str(spec.type).startswith("tuple")
        for flag in spec.metadata["args"]
    ]
    assert ("connect", "peer", "--peer") in lists
    for name, field, flag in lists:
        assert getattr(parse(name, flag, "a", f"{flag}=b,c", flag, "d"), field) == ("a", "b", "c", "d")


def test_a_flag_beats_the_environment() -> None:
    options = parse("llama-cpp-rpc", "--log-level", "debug", LOCALAI_LOG_LEVEL="error")
    assert options.log_level == "debug"


def test_a_flag_that_repeats_the_default_beats_the_environment() -> None:
    assert (
        parse("p2p-llama-cpp-rpc", "--runner-address", "127.0.0.1", RUNNER_ADDRESS="10.0.0.1").runner_address
        == "127.0.0.1"
    )


def test_defaults() -> None:
    options = fill(P2pOptions(), {})
    assert (options.log_level, options.runner_address, options.sandbox) == ("info", "127.0.0.1", "auto")
    assert (options.runner_port, options.no_runner, options.network_id) == (None, False, "")
    plain = fill(LlamaCppRpcOptions(), {})
    assert (plain.backend_assets_path, plain.llama_cpp_args, plain.log_level) == (None, None, "info")
    assert (plain.device, plain.require_gpu, plain.backend_dir) == ((), False, None)


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("YES", True), ("false", False), ("0", False)]
)
def test_a_switch_from_the_environment(text: str, value: bool) -> None:
    assert fill(P2pOptions(), {"LOCALAI_NO_RUNNER": text}).no_runner is value


@pytest.mark.parametrize(
    ("name", "text"), [("NO_RUNNER", "maybe"), ("RUNNER_PORT", "http"), ("LOCALAI_LOG_LEVEL", "loud")]
)
def test_a_variable_that_cannot_be_used_is_named(name: str, text: str) -> None:
    with pytest.raises(WorkerError, match=name) as caught:
        fill(P2pOptions(), {name: text})
    assert caught.value.code == ExitCode.USAGE


@pytest.mark.parametrize("flag", ["--network-id", "--p2p-network-id", "--peer2peer-network-id"])
def test_every_spelling_of_the_network_id(flag: str) -> None:
    assert parse("p2p-llama-cpp-rpc", flag, "lab").network_id == "lab"


@pytest.mark.parametrize("flag", ["--llama-cpp-args", "--extra-llama-cpp-args"])
def test_server_arguments_may_begin_with_a_dash(flag: str) -> None:
    assert parse("llama-cpp-rpc", flag, "-c").llama_cpp_args == "-c"
    assert parse("llama-cpp-rpc", f"{flag}=-c -p 1").llama_cpp_args == "-c -p 1"


def test_a_repeated_peer_is_kept() -> None:
    options = parse("connect", "--peer", "a:1", "--workers", "2", "--peer=b:2,c")
    assert options.peer == ("a:1", "b:2", "c")
    assert options.workers == 2
    assert options.only == ()


@pytest.mark.parametrize(
    ("text", "expected"), [("500M", 500 << 20), ("20g", 20 << 30), ("1.5K", 1536), ("1T", 1 << 40), ("0", 0), ("7", 7)]
)
def test_a_size_is_written_as_people_do(text: str, expected: int) -> None:
    assert size(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-1", "many", "20GB", "nan", "inf", "1e30"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError):
        size(text)


def test_devices_are_a_list_however_they_are_given() -> None:
    assert parse("llama-cpp-rpc", "--device", "Vulkan0,CUDA0").device == ("Vulkan0", "CUDA0")
    assert parse("p2p-llama-cpp-rpc", "--device", "Vulkan0", "--device=CUDA0").device == ("Vulkan0", "CUDA0")


def test_a_required_gpu_and_own_backends_from_the_environment() -> None:
    for options in (LlamaCppRpcOptions(), P2pOptions()):
        filled = fill(options, {"WORKER_REQUIRE_GPU": "1", "WORKER_BACKEND_DIR": "/opt/ggml"})
        assert (filled.require_gpu, filled.backend_dir) == (True, "/opt/ggml")


def test_the_token_is_in_no_representation() -> None:
    assert "sesame" not in repr(P2pOptions(token="sesame"))


@pytest.mark.parametrize("flags", [("--tok", "x"), ("--nope",), ("--workers", "many"), ("--workers",), ("word",)])
def test_a_wrong_flag_is_a_usage_error(flags: tuple[str, ...]) -> None:
    with pytest.raises(WorkerError) as caught:
        parse("connect", *flags)
    assert caught.value.code == ExitCode.USAGE
    assert "connect --help" in caught.value.hint
