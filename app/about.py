"""The `version` and `licenses` commands: what this file is and carries."""

from __future__ import annotations

import json

from app import __version__, embedded
from app.errors import ExitCode
from app.manifest import Native
from app.options import LicensesOptions, VersionOptions


def version(options: VersionOptions, extra: list[str] | None) -> int:  # noqa: ARG001 - every command has it
    """`worker version`"""
    manifest = embedded.payload().manifest
    head = embedded.head()
    programs = sorted(path.rpartition("/")[2] for path in head.manifest.files) if head else []
    about = embedded.about()
    native = manifest.native
    facts = {
        "release": _release(native, p2p=about["p2p"]),
        "version": __version__,
        "p2p": about["p2p"],
        "llama_cpp": native.llama_cpp,
        "llama_cpp_commit": native.commit,
        "rpc_protocol": native.rpc_protocol,
        "target": native.target,
        "backends": native.backends,
        "cpu_variants": native.cpu_variants,
        "cpu_variants_run": native.cpu_variants_run,
        "gpu": native.gpu,
        "glibc": {"rpc-server": native.glibc, "launcher": about["glibc"]},
        "libc_bundled": native.libc_bundled,
        "compiler": native.compiler,
        "python": about["python"],
        "openssl": about["openssl"],
        "payload": manifest.digest,
        "head": {"programs": programs, "payload": head.manifest.digest} if head else None,
    }
    if options.json:
        print(json.dumps(facts, indent=2))
        return ExitCode.OK
    libc = "its own libc" if native.libc_bundled else f"glibc {native.glibc} or newer"
    print(f"worker {__version__} ({'with' if about['p2p'] else 'without'} p2p, {native.target})")
    print(f"release: {facts['release']}")
    print(f"llama.cpp {native.llama_cpp}, commit {native.commit}, RPC protocol {native.rpc_protocol}")
    print(f"backends: {', '.join(native.backends)}; CPU variants: {' '.join(native.cpu_variants)}")
    if native.gpu:
        print(f"GPU: {native.gpu}")
    print(f"needs: glibc {about['glibc']} or newer for this program, {libc} for rpc-server")
    print(f"built with: {native.compiler}, Python {about['python']}, OpenSSL {about['openssl']}")
    print(f"payload: {manifest.digest}")
    if head:
        print(f"for the head: {', '.join(programs)}, {head.manifest.digest}")
    return ExitCode.OK


def _release(native: Native, *, p2p: bool) -> str:
    """What this file is called where releases lie side by side: only those of one RPC protocol fit together."""
    flavour = {"nop2p": not p2p, "cuda": "CUDA" in native.backends, "libc": native.libc_bundled}
    kinds = [name for name, so in flavour.items() if so]
    major = native.rpc_protocol.partition(".")[0]
    return "-".join(["worker", *kinds, __version__, f"rpc{major}", "linux", native.target])


def licenses(options: LicensesOptions, extra: list[str] | None) -> int:  # noqa: ARG001 - every command has it
    """`worker licenses`"""
    print(embedded.licenses(), end="")
    return ExitCode.OK
