"""Where things lie in the repository and under build/."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "requirements"
NATIVE = ROOT / "native"
SPEC = ROOT / "worker.spec"
DIST = ROOT / "dist"

BUILD = ROOT / "build"
DOWNLOADS = BUILD / "download"
LOGS = BUILD / "logs"
STAMPS = BUILD / "stamps"
VENV = BUILD / "venv"
PYTHON = VENV / "bin" / "python"
