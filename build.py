#!/usr/bin/env python3
"""The one build tool: `python3 build.py --help`. Standard library only."""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
from dataclasses import replace
from pathlib import Path

if sys.version_info < (3, 11):  # noqa: UP036 - told here, before an import fails on something newer
    sys.exit(
        f"error: Python {sys.version.split()[0]} is too old\n"
        "hint: start build.py with Python 3.11 or newer, such as `python3.11 build.py`"
    )

from builder import (
    checks,
    cuda,
    debian,
    environment,
    freeze,
    native,
    openssl,
    package,
    software_gpu,
    source,
    transfer,
    vulkan,
)
from builder.paths import BUILD, DIST, ROOT
from builder.steps import fail, say

_EXAMPLES = """\
commands:
  (none)             build dist/worker
  test               build everything and run every check
  bench [WHAT]       measure: relay, tokens, scale, start, discovery; record, picture
  faults [ROW ...]   hold every fault and attack of docs/SECURITY.md, in full, and write its table
  fuzz [MINUTES]     feed everything that reads foreign bytes, guided by coverage
  soak [MINUTES]     workers and heads that come, go and are killed; then look for leaks
  fetch DIR          fill DIR with the archives that an offline build needs
  clean              remove build/ and dist/

examples:
  python3 build.py                       the full file: dist/worker
  python3 build.py --no-p2p              the small one: dist/worker-nop2p
  python3 build.py --gpu cuda            with CUDA in place of Vulkan: dist/worker-cuda
  python3 build.py --offline DIR         without a package index
  python3 build.py --target aarch64      the native part for another machine
"""
_PROGRAMS = {"bench": "bench", "faults": "tests.faults", "fuzz": "tests.fuzz", "soak": "tests.soak"}
"""Commands that measure or attack what was built, and the module that each one is."""
_DRIVING = ("test", *_PROGRAMS)
"""Commands that drive what was built, so that they need all of it."""


def main() -> None:
    arguments = _parse()
    if arguments.command == "clean":
        for directory in (BUILD, DIST):
            shutil.rmtree(directory, ignore_errors=True)
        return
    environment.check_python()
    environment.prepare(arguments.offline, tests=arguments.command in _DRIVING, fuzz=arguments.command == "fuzz")
    if arguments.command == "fetch":
        _fetch(arguments)
        return
    options = _native_options(arguments)
    llama_cpp = source.prepare(arguments.offline)
    if arguments.target != platform.machine():
        archive = transfer.export(native.build(options, llama_cpp), _head(options, llama_cpp))
        say(
            f"{archive}: carry it to an {arguments.target} machine, and there: python3 build.py --native {archive.name}"
        )
        return
    if arguments.native:
        tree, head = transfer.imported(arguments.native)
    else:
        tree = native.build(options, llama_cpp)
        head = None if arguments.no_p2p else _head(options, llama_cpp)
    payload = package.package(tree, llama_cpp)
    packed_head = package.package_head(head, tree, llama_cpp) if head and not arguments.no_p2p else None
    libraries = openssl.prepare(arguments.offline)
    if arguments.command == "build":
        suffix = ("-cuda" if options.gpu == "cuda" else "") + ("-libc" if tree.libc_bundled else "")
        name = ("worker-nop2p" if arguments.no_p2p else "worker") + suffix
        binary = freeze.freeze(payload, libraries, p2p=not arguments.no_p2p, name=name, head=packed_head)
        if options.left_out:
            say(options.left_out)
        say(f"{binary.relative_to(ROOT)} is ready; try: {binary.relative_to(ROOT)} version")
        return
    with_libc = native.build(replace(options, bundle_libc=True, gpu="none"), llama_cpp)
    aarch64 = None
    if arguments.command == "test" and native.can_emulate():
        aarch64 = native.build(replace(options, target="aarch64", gpu="none", vulkan=None), llama_cpp).path
    built = checks.Built(
        full=freeze.freeze(payload, libraries, p2p=True, name="worker", head=packed_head),
        small=freeze.freeze(payload, libraries, p2p=False, name="worker-nop2p"),
        with_libc=freeze.freeze(package.package(with_libc, llama_cpp), libraries, p2p=False, name="worker-nop2p-libc"),
        tree=tree.path,
        clients=native.build_clients(options, llama_cpp),
        aarch64_tree=aarch64,
        software_gpu=software_gpu.prepare() if options.gpu == "vulkan" else {},
    )
    if arguments.command == "test":
        checks.test(built, arguments.rest)
    else:
        checks.run(built, _PROGRAMS[arguments.command], [*(["--quick"] if arguments.quick else []), *arguments.rest])


def _head(options: native.NativeOptions, llama_cpp: source.Source) -> Path | None:
    """The programs for the head; none where they would need the carried C library's loader."""
    return None if options.bundle_libc else native.build_head(options, llama_cpp)


def _native_options(arguments: argparse.Namespace) -> native.NativeOptions:
    """What is to be compiled; `--gpu auto` is decided here."""
    options = native.NativeOptions(arguments.target, arguments.compiler, arguments.bundle_libc, gpu=arguments.gpu)
    if arguments.gpu == "cuda":
        sdk = cuda.prepare(arguments.offline, arguments.cuda_arch, carry_cublas=arguments.carry_cublas)
        return replace(options, cuda=sdk)
    if arguments.gpu == "none" or arguments.native or arguments.bundle_libc:
        return replace(options, gpu="none")
    try:
        return replace(options, gpu="vulkan", vulkan=vulkan.prepare(arguments.offline, arguments.debian_mirror))
    except debian.Unavailable as error:
        if arguments.gpu == "vulkan":
            fail(f"Vulkan cannot be built: {error}", "or leave it out: python3 build.py --gpu none")
        return replace(options, gpu="none", left_out=f"Vulkan was left out: {error}")


def _fetch(arguments: argparse.Namespace) -> None:
    environment.fetch(arguments.what)
    openssl.fetch(arguments.what)
    if arguments.gpu == "cuda":
        environment.download("cuda", arguments.what)
    elif arguments.gpu != "none":
        try:
            debian.fetch(arguments.what, arguments.debian_mirror)
        except debian.Unavailable as error:
            if arguments.gpu == "vulkan":
                fail(str(error), "or leave it out: python3 build.py --gpu none fetch DIR")
            say(f"without what Vulkan needs: {error}")
    say(f"{arguments.what} holds everything; next: python3 build.py --offline {arguments.what}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="build.py",
        description="Builds `worker`, one file that carries llama.cpp's rpc-server, and tests it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = ("build", *_DRIVING, "fetch", "clean")
    parser.add_argument("command", nargs="?", default="build", choices=commands, metavar="COMMAND", help="see below")
    parser.add_argument("rest", nargs="*", metavar="WHAT", help="what to fetch to, measure or test")
    parser.add_argument("--quick", action="store_true", help="for bench: once and little, to see that it works")
    parser.add_argument("--no-p2p", action="store_true", help="leave p2p out: dist/worker-nop2p")
    parser.add_argument(
        "--compiler", choices=("zig", "system"), default="zig", help="the pinned one, or the machine's own"
    )
    parser.add_argument("--target", choices=native.TARGETS, default=platform.machine(), help="which machine it is for")
    parser.add_argument("--native", type=Path, metavar="ARCHIVE", help="a native part made with --target elsewhere")
    parser.add_argument(
        "--gpu", choices=("auto", "none", "vulkan", "cuda"), default="auto",
        help="the GPU backend (default: Vulkan, where what it needs can be had)",
    )  # fmt: skip
    parser.add_argument(
        "--cuda-arch", default=cuda.ARCHITECTURES, metavar="LIST", help="for --gpu cuda, such as 86-real"
    )
    parser.add_argument("--carry-cublas", action="store_true", help="carry cuBLAS, some 300 MB, in dist/worker-cuda")
    parser.add_argument("--debian-mirror", metavar="URL", help="where Vulkan's parts are fetched, if not as apt does")
    parser.add_argument("--bundle-libc", action="store_true", help="carry the C library too (CPU only)")
    parser.add_argument("--offline", type=Path, metavar="DIR", help="take every archive from DIR (see fetch)")
    arguments = parser.parse_args()
    if arguments.command == "fetch":
        if len(arguments.rest) != 1:
            parser.error("fetch wants one directory, such as: python3 build.py fetch archives")
        arguments.what = Path(arguments.rest[0])
    drives = arguments.command in _DRIVING
    if arguments.command != "fetch" and arguments.rest and not drives:
        parser.error(f"{arguments.command} takes no {arguments.rest[0]!r}")
    if drives and (arguments.no_p2p or arguments.target != platform.machine()):
        parser.error(f"{arguments.command} takes neither --no-p2p nor --target: it builds all that it needs")
    if arguments.bundle_libc and arguments.gpu in ("vulkan", "cuda"):
        parser.error("--bundle-libc is for CPU only: a GPU driver would load the machine's own C library beside it")
    if drives and arguments.gpu == "cuda":
        parser.error(f"{arguments.command} builds the standard file; leave --gpu cuda out")
    if arguments.offline and not arguments.offline.is_dir():
        parser.error(f"--offline {arguments.offline}: no such directory; `python3 build.py fetch DIR` fills one")
    if arguments.offline:
        arguments.offline = arguments.offline.resolve()
    return arguments


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; the next build goes on from the last finished step")
