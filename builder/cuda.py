"""What the CUDA backend is compiled with: the machine's nvcc, and cuBLAS."""

from __future__ import annotations

import re
import shutil
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from app.payload import LIBRARIES
from builder.environment import LOCKS, download
from builder.paths import BUILD, DOWNLOADS
from builder.steps import digest, fail, once, say

ARCHITECTURES = "75-virtual;80-virtual;86-real;89-real;90-virtual;120a-real"
"""Turing to Blackwell: the commonest cards have code of their own, the driver makes that of the others at first use."""
_PLACES = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
_HINT = "install NVIDIA's CUDA toolkit, or build with Vulkan, which needs none: python3 build.py --gpu vulkan"


@dataclass(frozen=True)
class CudaSdk:
    """Where the parts lie."""

    nvcc: Path
    version: str
    architectures: str
    """As CMake's CMAKE_CUDA_ARCHITECTURES has them."""
    cublas: Path
    """Holds include/ and lib/."""
    carry_cublas: bool

    @property
    def name(self) -> str:
        """What it is, for `version --json`."""
        return f"CUDA {self.version}, architectures {self.architectures.replace(';', ' ')}"

    @property
    def cmake_options(self) -> list[str]:
        """What native/CMakeLists.txt and CMake's FindCUDAToolkit want."""
        toolkit = self.nvcc.parent.parent
        include = f"-I{self.cublas / 'include'}"
        return [
            f"-DCMAKE_CUDA_COMPILER={self.nvcc}",
            f"-DCUDAToolkit_ROOT={toolkit}",
            f"-DCMAKE_CUDA_ARCHITECTURES={self.architectures}",
            f"-DCMAKE_CUDA_FLAGS={include}",
            f"-DCMAKE_CXX_FLAGS={include}",
            "-DCMAKE_SHARED_LINKER_FLAGS=-static-libstdc++ -static-libgcc",
            "-DCMAKE_MODULE_LINKER_FLAGS=-static-libstdc++ -static-libgcc",
            # ggml names the shared runtime; the file carries it linked in.
            f"-DCUDA_cudart_LIBRARY={_one(toolkit, 'libcudart_static.a')}",
            f"-DCUDA_cublas_LIBRARY={_one(self.cublas, 'libcublas.so*')}",
        ]

    def add_libraries(self, tree: Path) -> None:
        """Put cuBLAS into the tree, where it is to be carried."""
        if self.carry_cublas:
            target = tree / LIBRARIES
            target.mkdir(parents=True, exist_ok=True)
            for pattern in ("libcublas.so.*", "libcublasLt.so.*"):
                library = _one(self.cublas, pattern)
                shutil.copy(library, target / library.name)


def prepare(offline: Path | None, architectures: str, *, carry_cublas: bool) -> CudaSdk:
    """Find nvcc, fetch cuBLAS's headers and libraries; ends the build where nvcc is missing."""
    nvcc = _nvcc()
    told = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release ([\d.]+)", told)
    if version is None:
        fail(f"{nvcc} --version tells no version", _HINT)
    cublas = BUILD / "cublas"
    once("cublas", digest(files=[LOCKS["cuda"]]), [cublas], lambda: _unpack(cublas, offline))
    return CudaSdk(nvcc, version[1], architectures, cublas / "nvidia/cu13", carry_cublas)


def _unpack(target: Path, offline: Path | None) -> None:
    archives = offline or DOWNLOADS
    if not offline:
        download("cuda", archives)
    wheels = sorted(archives.glob("nvidia_cublas-*.whl"))
    if not wheels:
        fail(f"{archives} holds no nvidia_cublas wheel", "fill it with `python3 build.py --gpu cuda fetch DIR`")
    say("unpacking cuBLAS ...")
    shutil.rmtree(target, ignore_errors=True)
    with zipfile.ZipFile(wheels[-1]) as wheel:
        wheel.extractall(target)


def _one(root: Path, pattern: str) -> Path:
    found = sorted(root.rglob(pattern))
    if not found:
        fail(f"{root} holds no {pattern}", _HINT)
    return found[0]


def _nvcc() -> Path:
    """The compiler itself: CMake looks for the toolkit beside it, and what is on PATH may be a script elsewhere."""
    for place in map(Path, _PLACES):
        if place.exists():
            return place
    found = shutil.which("nvcc")
    if found is None:
        fail("nvcc is missing, which compiles the CUDA backend", _HINT)
    return Path(found).resolve()
