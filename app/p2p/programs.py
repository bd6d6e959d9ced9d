"""llama.cpp's programs for the head out of this file: unpacked, checked, beside the backends that are good here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from app import embedded
from app.backends.start import Arranger
from app.directories import UnsafeDirectory, check_owner
from app.embedded import Payload
from app.errors import WorkerError
from app.payload import SERVER

_ELSEWHERE = "start from another directory"


@dataclass(frozen=True)
class Program:
    """A program ready to be started, in whatever working directory `refuse_foreign_backends` allows."""

    path: Path
    """Absolute."""
    env: dict[str, str]
    held: tuple[int, ...]
    """Descriptors to keep open while it runs, so that nobody prunes its files."""


def prepare(name: str, environ: Mapping[str, str], assets_path: str | None) -> Program:
    """The carried program `name`, `llama-server` or `llama-bench`; `assets_path` is where the user wants it unpacked.

    Raises `WorkerError`: this file carries none, unusable assets, a working directory with backends in it.
    """
    head = embedded.head()
    if head is None:
        raise WorkerError(f"this file carries no {name}", "take the full `worker`, built without --bundle-libc")
    return arrange(embedded.payload(), head, name, environ, assets_path)


def arrange(worker: Payload, head: Payload, name: str, environ: Mapping[str, str], assets_path: str | None) -> Program:
    """`prepare`, with the two carried parts given."""
    refuse_foreign_backends()
    arranger = Arranger(worker, [], (), environ, assets_path=assets_path)
    start = arranger.prepare_other(head, str(Path(SERVER).with_name(name)))
    return Program(Path(start.command.argv[0]), start.command.env, start.held)


def refuse_foreign_backends() -> None:
    """Raise `WorkerError` where the working directory holds ggml backends, or somebody else could put one there.

    ggml loads them from there too (`ggml_backend_load_best` in ggml-backend-reg.cpp), and the
    programs stay there for the sake of relative paths in their arguments.
    """
    try:
        here = Path.cwd()
        check_owner(here.stat(), here, sticky=False)
        found = sorted(path.name for path in here.glob("libggml-*.so"))
    except UnsafeDirectory as problem:
        raise WorkerError(
            f"{problem.message}, the working directory from where llama.cpp loads code too", _ELSEWHERE
        ) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise WorkerError(f"cannot read the working directory: {reason}", _ELSEWHERE) from None
    if found:
        raise WorkerError(
            f"the working directory holds {found[0]}, which llama.cpp would load in place of the carried one",
            _ELSEWHERE,
        )
