"""A staged tree -> what the one file carries of it: manifest, archive, licences."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from app import segments
from app.manifest import FileEntry, Manifest, Native, ServerOption
from builder.environment import LOCKS
from builder.native import UTIL, Tree, server_options
from builder.paths import BUILD, PYTHON, ROOT
from builder.source import Source
from builder.steps import digest, once, say

_SYSTEM_LIBRARIES = ("zlib1g", "libbz2-1.0", "liblzma5", "libffi8")
"""Debian's names of what the interpreter links to and PyInstaller carries along."""
_HEADERS_WITH_LICENSE = (
    "vendor/miniaudio/miniaudio.h",
    "vendor/stb/stb_image.h",
    "vendor/sheredom/subprocess.h",
    "common/base64.hpp",
)
"""Of llama.cpp's programs for the head: these have their licence in themselves."""


def package(tree: Tree, llama_cpp: Source) -> Path:
    """What is carried of `tree`: manifest.json, the segments of the archive, licenses.txt.xz; their directory."""
    return _package(tree.path, tree, llama_cpp, lambda: server_options(tree), lambda: _licenses(llama_cpp, tree))


def package_head(head: Path, tree: Tree, llama_cpp: Source) -> Path:
    """The same of the programs for the head, which were compiled with `tree`."""
    return _package(head, tree, llama_cpp, lambda: (), lambda: _licenses_of_head(llama_cpp))


def _package(
    directory: Path,
    tree: Tree,
    llama_cpp: Source,
    options: Callable[[], tuple[ServerOption, ...]],
    licenses: Callable[[], dict[str, str]],
) -> Path:
    target = BUILD / "payload" / directory.name
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    key = digest(
        tree, llama_cpp, files=[*files, Path(__file__), Path(segments.__file__), ROOT / "LICENSE", LOCKS["app"]]
    )

    def make() -> None:
        say(f"packing {directory.name} ...")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        manifest = Manifest(
            {path.relative_to(directory).as_posix(): _entry(path) for path in files}, options(), _native(tree)
        )
        (target / "manifest.json").write_bytes(manifest.to_json())
        packed = 0
        for number, segment in enumerate(segments.compress(manifest, lambda path: (directory / path).read_bytes())):
            packed += (target / f"segment-{number}.xz").write_bytes(segment)
        (target / "licenses.txt.xz").write_bytes(lzma.compress(_joined(licenses()).encode(), preset=9))
        size = sum(entry.size for entry in manifest.files.values())
        say(f"{manifest.digest[:12]}: {size / 1e6:.1f} MB in {len(files)} files, {packed / 1e6:.1f} MB packed")

    once(f"payload-{directory.name}", key, [target / "licenses.txt.xz"], make)
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


def _licenses(llama_cpp: Source, tree: Tree) -> dict[str, str]:
    """The licence texts of the launcher and the worker's part, by the names of what they cover."""
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
    texts["OpenSSL"] = "Copyright The OpenSSL Project Authors. Apache License 2.0, whose text stands at cryptography."
    return texts


def _licenses_of_head(llama_cpp: Source) -> dict[str, str]:
    """Those of what llama.cpp carries along for its programs: in files of their own, or in a header's comment."""
    files = [path for room in ("licenses", "vendor") for path in sorted((llama_cpp.path / room).rglob("LICENSE*"))]
    texts = {str(path.relative_to(llama_cpp.path)): path.read_text() for path in files}
    for name in _HEADERS_WITH_LICENSE:
        comments = re.findall(r"/\*.*?\*/", (llama_cpp.path / name).read_text(), re.DOTALL)
        texts[name] = next(comment for comment in comments if "WITHOUT WARRANTY OF ANY KIND" in comment)
    return texts


def _joined(texts: Mapping[str, str]) -> str:
    rule = "=" * 78
    return "\n".join(f"{rule}\n{name}\n{rule}\n\n{text.strip()}\n" for name, text in texts.items())
