"""Goal: imports go down only, tests mirror the code, and each library is known to the files that need it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

APP = Path("app")

LAYERS = [
    ["app", "app.errors", "app.parent", "app.parallel"],
    ["app.manifest", "app.carchive", "app.fields", "app.options", "app.console", "app.directories"],
    ["app.cache", "app.cache.directory"],
    ["app.embedded", "app.segments", "app.verify", "app.onefile", "app.late"],
    ["app.payload"],
    ["app.launch", "app.server_args"],
    ["app.cache.tool"],
    ["app.backends", "app.backends.findings", "app.backends.machine"],
    ["app.backends.policy", "app.backends.reasons", "app.backends.verdict", "app.backends.links", "app.backends.own"],
    ["app.backends.probe"],
    ["app.backends.start"],
    ["app.backends.devices"],
    ["app.llama_cpp_rpc", "app.assets", "app.about", "app.cache.command"],
    [
        "app.p2p.token",
        "app.p2p.records",
        "app.p2p.procnet",
        "app.p2p.interfaces",
        "app.p2p.peers",
        "app.p2p.libc",
        "app.p2p.cache_mark",
        "app.p2p.programs",
        "app.p2p.backoff",
    ],
    ["app.p2p.identity", "app.p2p.frames", "app.p2p.lease", "app.p2p.rpc", "app.p2p.gate", "app.p2p.listening"],
    ["app.p2p.server_cache", "app.p2p.announcement"],
    ["app.p2p.landlock", "app.p2p.privileges", "app.p2p.seccomp"],
    [
        "app.p2p.membership",
        "app.p2p.server",
        "app.p2p.namespace",
        "app.p2p.layers",
        "app.p2p.confinement",
        "app.p2p.systemd",
        "app.p2p.local_client",
    ],
    [
        "app.p2p.channel",
        "app.p2p.mdns",
        "app.p2p.signals",
        "app.p2p.keeper_process",
        "app.p2p.server_output",
        "app.p2p.worker_id",
    ],
    ["app.p2p.conversation", "app.p2p.keeper", "app.p2p.pump"],
    ["app.p2p.own_server"],
    ["app.p2p.external", "app.p2p.supervisor", "app.p2p.lender", "app.p2p.link"],
    ["app.p2p.control", "app.p2p.dialer", "app.p2p.announcer", "app.p2p.browser"],
    ["app.p2p.relay", "app.p2p.roster", "app.p2p.tunnel"],
    ["app.p2p.command", "app.p2p.starter", "app.p2p.llama_server_log", "app.p2p.restarts"],
    ["app.p2p.events", "app.p2p.listing", "app.p2p.search", "app.p2p.protocol", "app.p2p.runner"],
    ["app.p2p.gathering"],
    ["app.p2p.session", "app.p2p.serving"],
    ["app.p2p.worker", "app.p2p.head", "app.p2p.carried"],
    ["app.p2p", "app.p2p_stub"],
    ["app.cli"],
    ["app.__main__", "app.main_nop2p"],
]
"""From the ground up. A module imports from its own layer only what stands before it there."""

OWNERS = {
    "cryptography": {"app.p2p.token", "app.p2p.identity"},
    "zeroconf": {"app.p2p.mdns", "app.p2p.announcer", "app.p2p.browser"},
    "rich": {"app.console"},
    "argparse_dataclass": {"app.cli"},
}

NOT_MIRRORED = {
    "app.errors",  # names
    "app.__main__",  # two entries of five lines
    "app.main_nop2p",
    "app.p2p_stub",  # test_cli.py
    "app.late",
    "app.fields",  # test_options.py
    "app.embedded",  # these need the frozen file: tests/live
    "app.llama_cpp_rpc",
    "app.assets",
    "app.about",
    "app.backends.devices",
    "app.p2p.worker",
    "app.p2p.control",  # test_relay.py
    "app.p2p.carried",  # test_serving.py
    "app.p2p.mdns",  # these three need each other: test_discovery.py
    "app.p2p.announcer",
    "app.p2p.browser",
}


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in APP.rglob("*.py")}


def imported(path: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = below & set(MODULES)
            found.update(inside)
            if inside != below:
                found.add(node.module)
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_down(name: str) -> None:
    order = [module for layer in LAYERS for module in layer]
    assert name in order, f"{name} has no place in LAYERS"
    climbing = imported(MODULES[name]) & set(order[order.index(name) + 1 :])
    assert not climbing, f"{name} imports from above: {climbing}"


def test_the_command_line_does_not_know_p2p() -> None:
    assert not [name for name in imported(MODULES["app.cli"]) if name.startswith("app.p2p")]


@pytest.mark.parametrize("library", sorted(OWNERS))
def test_each_library_has_its_place(library: str) -> None:
    users = {name for name, path in MODULES.items() if any(m.split(".")[0] == library for m in imported(path))}
    assert users == OWNERS[library]


def test_tests_mirror_the_code() -> None:
    missing = [
        name
        for name, path in MODULES.items()
        if name not in NOT_MIRRORED
        and path.name != "__init__.py"
        and not Path("tests", *path.parts[1:-1], f"test_{path.stem}.py").exists()
    ]
    assert not missing, f"no test file for {missing}"
