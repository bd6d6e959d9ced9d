"""Searches one target for the long run: `python -m tests.fuzz.child TARGET [libFuzzer's options] CORPUS`."""

from __future__ import annotations

import logging
import sys

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["app"]):
    from tests.fuzz.targets import TARGETS


def main(name: str, options: list[str]) -> None:
    log = logging.getLogger("app")
    log.addHandler(logging.NullHandler())
    log.propagate = False  # warnings are many, and no findings

    def run(data: bytes) -> None:
        TARGETS[name](data)

    atheris.Setup([name, *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
