"""The `cache` commands: put a model's weights on this worker's disk, list, check and remove what is there."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app import embedded, payload
from app.cache.directory import adding, check_safe, entries, own_directory, shrink, spare_room, sweep
from app.console import Table, print_plain
from app.directories import opened
from app.errors import ExitCode, WorkerError
from app.options import CacheAddOptions, CacheListOptions, CachePruneOptions, CacheVerifyOptions

_FIRST_PART = re.compile(r"(.+)-00001-of-([0-9]{5})\.gguf")
"""How llama.cpp names the parts of a split model (`llama_split_path`)."""
_NEWS = 5.0
"""Seconds between two lines on how far it has come."""

log = logging.getLogger(__name__)


def add(options: CacheAddOptions, extra: list[str] | None) -> int:  # noqa: ARG001 - every command has it
    """`worker cache add MODEL.gguf ...`"""
    models = _parts(options.models)
    from app.cache import tool  # subprocess and tempfile: other commands need not wait for them

    assets = payload.ensure(embedded.payload(), options.backend_assets_path, os.environ)
    with opened(assets.fd), _own() as directory, adding(directory):
        room = max(0, spare_room(directory))
        added = tool.add(assets, directory, models, options.max_size, room, os.environ, _progress())
        if gone := shrink(directory, options.max_size):  # what was just added or found is the youngest
            log.info("%d file(s) that were not used for longest were removed", len(gone))
    if options.json:
        for tensor in added.tensors:
            state = "added" if tensor.added else "present"
            print(json.dumps({"tensor": tensor.name, "bytes": tensor.bytes, "hash": tensor.hash, "state": state}))
        return ExitCode.OK
    new = sum(tensor.added for tensor in added.tensors)
    print(
        f"{directory}: {len(added.tensors)} tensors, {_mebibytes(added.bytes)}: {new} added, "
        f"{len(added.tensors) - new} were there; a head still sends the small ones, {_mebibytes(added.small)}"
    )
    return ExitCode.OK


def show(options: CacheListOptions, extra: list[str] | None) -> int:  # noqa: ARG001
    """`worker cache list`"""
    with _own() as directory:
        found = entries(directory)
    total = sum(entry.bytes for entry in found)
    if options.json:
        files = [{"file": entry.name, "bytes": entry.bytes, "used": entry.used} for entry in found]
        print(json.dumps({"directory": str(directory), "bytes": total, "files": files}, indent=2))
        return ExitCode.OK
    if found:
        rows = tuple((entry.name, _mebibytes(entry.bytes), _date(entry.used)) for entry in found)
        print_plain(Table(("FILE", "SIZE", "LAST USED"), rows), sys.stdout)
    print(f"{directory}: {len(found)} files, {_mebibytes(total)}")
    return ExitCode.OK


def verify(options: CacheVerifyOptions, extra: list[str] | None) -> int:  # noqa: ARG001
    """`worker cache verify`: wrong files are removed and named; then it ends with 1."""
    wrong = whole = 0
    with _own() as directory:
        if names := [entry.name for entry in entries(directory)]:
            from app.cache import tool

            assets = payload.ensure(embedded.payload(), options.backend_assets_path, os.environ)
            with opened(assets.fd):
                for checked in tool.verify(assets, directory, names, os.environ):
                    if checked.whole:
                        whole += 1
                        continue
                    wrong += 1
                    (directory / checked.name).unlink(missing_ok=True)
                    print(f"removed {checked.name}, {_mebibytes(checked.bytes)}: its content has another hash")
    print(f"{directory}: {whole} files, each as its name says")
    return ExitCode.FAILED if wrong else ExitCode.OK


def prune(options: CachePruneOptions, extra: list[str] | None) -> int:  # noqa: ARG001
    """`worker cache prune`"""
    with _own() as directory:
        if not directory.is_dir():
            return ExitCode.OK
        with adding(directory):
            sweep(directory)
            gone = shrink(directory, options.max_size)
        for entry in gone:
            print(f"removed {entry.name}, {_mebibytes(entry.bytes)}, last used {_date(entry.used)}")
    return ExitCode.OK


@contextmanager
def _own() -> Iterator[Path]:
    """The cache's directory. What the system refuses there is one `WorkerError`; so is one that others can write."""
    directory = own_directory(os.environ)
    try:
        check_safe(directory)
        yield directory
    except BrokenPipeError:  # nobody reads what we print
        raise
    except OSError as error:
        raise WorkerError(
            f"cannot use {directory}: {(error.strerror or str(error)).lower()}",
            "run this as the user that the worker runs as, or name another place with LLAMA_CACHE",
        ) from None


def _parts(named: Iterable[str]) -> list[Path]:
    """Each file once, and for the first part of a split model all its parts. Raises `WorkerError`."""
    found: dict[Path, None] = {}
    for path in (Path(name).absolute() for name in named):
        split = _FIRST_PART.fullmatch(path.name)
        count = int(split[2]) if split else 1
        for number in range(1, count + 1):
            part = path.with_name(f"{split[1]}-{number:05}-of-{split[2]}.gguf") if split else path
            if not part.is_file():
                raise WorkerError(f"there is no file {part}", f"the model has {count} parts" if split else "")
            found[part] = None
    return list(found)


def _progress() -> Callable[[int, int], None]:
    told = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal told
        if time.monotonic() > told + _NEWS:
            told = time.monotonic()
            log.info("%s of %s", _mebibytes(done), _mebibytes(of))

    return progress


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB" if size >= 10 << 20 else f"{size / (1 << 20):.1f} MiB"


def _date(used: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
