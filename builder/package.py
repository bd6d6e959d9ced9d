"""The staged tree -> what the one file carries: manifest, archive, licences."""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import re
import stat
import subprocess
import tarfile
from pathlib import Path

from app.manifest import FileEntry, Manifest, Native
from builder.environment import LOCKS
from builder.native import UTIL, Tree, server_options
from builder.paths import BUILD, PYTHON, ROOT
from builder.source import Source
from builder.steps import digest, once, say

_SYSTEM_LIBRARIES = ("libssl3", "zlib1g", "libbz2-1.0", "liblzma5", "libffi8")
"""Debian's names of what the interpreter links to and PyInstaller carries along."""
_DICTIONARY = 32 * 2**20
"""Bytes of xz's dictionary: the CPU variants share most of their code, 20 MB apart at most."""
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _DICTIONARY}]


def package(tree: Tree, llama_cpp: Source) -> Path:
    """Write manifest.json, assets.tar.xz and licenses.txt.xz of `tree`; their directory."""
    target = BUILD / "payload" / tree.path.name
    files = sorted(path for path in tree.path.rglob("*") if path.is_file())
    key = digest(tree, llama_cpp, files=[*files, Path(__file__), ROOT / "LICENSE", LOCKS["app"]])

    def make() -> None:
        say("packing the payload ...")
        target.mkdir(parents=True, exist_ok=True)
        manifest = Manifest(
            {path.relative_to(tree.path).as_posix(): _entry(path) for path in files},
            server_options(tree),
            _native(tree),
        )
        (target / "manifest.json").write_bytes(manifest.to_json())
        (target / "assets.tar.xz").write_bytes(_archive(tree.path, manifest))
        (target / "licenses.txt.xz").write_bytes(lzma.compress(_licenses(llama_cpp, tree).encode(), preset=9))
        size = sum(entry.size for entry in manifest.files.values())
        packed = (target / "assets.tar.xz").stat().st_size
        say(f"payload {manifest.digest[:12]}: {size / 1e6:.1f} MB in {len(files)} files, {packed / 1e6:.1f} MB packed")

    once(f"payload-{tree.path.name}", key, [target / "licenses.txt.xz"], make)
    return target


def _entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    executable = path.stat().st_mode & stat.S_IXUSR
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data), 0o700 if executable else 0o600)


def _native(tree: Tree) -> Native:
    names = sorted(path.name for path in (tree.path / UTIL).glob("libggml-*.so"))
    variants = [name.removeprefix("libggml-cpu-").removesuffix(".so") for name in names if "-cpu-" in name]
    others = [name.removeprefix("libggml-").removesuffix(".so").upper() for name in names if "-cpu-" not in name]
    return Native(
        llama_cpp=tree.llama_cpp,
        commit=tree.commit,
        rpc_protocol=tree.rpc_protocol,
        target=tree.target,
        backends=("CPU", *others),
        cpu_variants=tuple(variants),
        glibc=tree.glibc,
        compiler=tree.compiler,
        libc_bundled=tree.libc_bundled,
        gpu=tree.gpu_sdk,
        cpu_variants_run=tree.cpu_variants_run,
    )


def _archive(tree: Path, manifest: Manifest) -> bytes:
    """The files in the order of their names: alike ones lie side by side, and equal trees give equal bytes."""
    packed = io.BytesIO()
    with (
        lzma.open(packed, "wb", check=lzma.CHECK_CRC64, filters=_FILTERS) as plain,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, entry in sorted(manifest.files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = entry.size, entry.mode
            tar.addfile(member, io.BytesIO((tree / name).read_bytes()))
    return packed.getvalue()


def _licenses(llama_cpp: Source, tree: Tree) -> str:
    """Every licence text, under the name of what it covers."""
    texts = {"worker": (ROOT / "LICENSE").read_text(), "llama.cpp and ggml": (llama_cpp.path / "LICENSE").read_text()}
    carried = {"pyinstaller", *re.findall(r"^([a-z0-9-]+)==", LOCKS["app"].read_text(), re.MULTILINE)}
    script = (
        "import importlib.metadata as m, json, sys, sysconfig, pathlib\n"
        "found = {}\n"
        "for d in map(m.distribution, sys.argv[1:]):\n"
        "    for f in d.files or []:\n"
        "        if '.dist-info' in f.parts[0] and f.name.upper().startswith(('LICEN', 'COPYING', 'NOTICE')):\n"
        "            found[f'{d.name} {d.version}: {f.name}'] = f.locate().read_text(errors='replace')\n"
        "p = pathlib.Path(sysconfig.get_path('stdlib')) / 'LICENSE.txt'\n"
        "found['Python'] = p.read_text() if p.exists() else 'Python Software Foundation License, see docs.python.org'\n"
        "print(json.dumps(found))\n"
    )
    command = [str(PYTHON), "-c", script, *sorted(carried)]
    texts.update(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
    libraries = _SYSTEM_LIBRARIES + (("libc6",) if tree.libc_bundled else ())
    for name in libraries:
        notice = Path("/usr/share/doc", name, "copyright")
        texts[f"{name} (of the building machine)"] = (
            notice.read_text(errors="replace") if notice.exists() else "see the library's own project"
        )
    rule = "=" * 78
    return "\n".join(f"{rule}\n{name}\n{rule}\n\n{text.strip()}\n" for name, text in texts.items())
