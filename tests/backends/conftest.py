"""A payload whose probe is a script: each library's content says what it does to the process that loads it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from app.embedded import Payload
from tests.conftest import MakePayload

_PROBE = """\
#!{python}
import json, os, signal, sys, time
def say(**fields): print(json.dumps(fields), flush=True)
words = sys.argv[1:]
log = os.environ.get("PROBE_LOG")
if log: open(log, "a").write(" ".join(words) + "\\n")
if words[0] == "vulkan":
    say(step="vulkan", of="libvulkan.so.1")
    for line in json.loads(os.environ.get("FAKE_VULKAN", "[]")): say(**line)
    say(end=True); sys.exit()
left, untried, paths = [], [], []
rest = iter(words[1:])
for word in rest:
    (left.append(next(rest)) if word == "--left" else untried.append(next(rest)) if word == "--untried"
     else paths.append(word))
def act(content):
    if content == "crash": os.kill(os.getpid(), signal.SIGILL)
    if content == "hang": time.sleep(600)
for path in paths:
    name = os.path.basename(path)
    text = open(path).read().split()
    say(step="load", of=path); act(text[0])
    if text[0] == "missing": say(library=path, state="failed", detail="libcuda.so.1: cannot open"); continue
    variant = "-cpu-" in name
    say(library=path, state="loaded", detail="")
    if variant: say(step="run", of=path)
    for word in text[1:]:
        device, _, what = word.partition("=")
        say(step="ask", of=device)
        type = "cpu" if variant else "gpu"
        backend = "CPU" if variant else "Vulkan" if "vulkan" in name else "CUDA"
        say(device=device, description=what.partition("/")[0], type=type, backend=backend, id="", total=2048, free=1024)
        if device in untried or what.partition("/")[0] in left: continue
        say(step="try", of=device); act(what.partition("/")[2])
        say(tried=device, trouble="")
    if variant: say(library=path, state="ran", detail="")
say(end=True)
"""

SERVER = b"#!/bin/sh\nexec env\n"
UTIL = "backend-assets/util"

Probed = Callable[..., Payload]


@pytest.fixture
def probed(make_payload: MakePayload) -> Probed:
    """A payload with a CPU variant `CPU` and the given libraries: name without `libggml-` and `.so` -> content."""

    def make(**libraries: str) -> Payload:
        contents = {"cpu-x64": "ok CPU=Some", **{name.replace("_", "-"): text for name, text in libraries.items()}}
        files = {f"{UTIL}/libggml-{name}.so": text.encode() for name, text in contents.items()}
        probe = _PROBE.format(python=sys.executable).encode()
        return make_payload({f"{UTIL}/llama-cpp-rpc-server": SERVER, f"{UTIL}/worker-probe": probe, **files})

    return make


@pytest.fixture
def probe_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a line for each run of the probe."""
    log = tmp_path / "probe.log"
    monkeypatch.setenv("PROBE_LOG", str(log))
    return log
