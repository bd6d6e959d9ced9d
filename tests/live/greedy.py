"""Prints the tokens that a model generates greedily: `python -m tests.live.greedy LLAMA_SERVER MODEL RPC`.

An empty RPC is for this machine alone.

Through llama-server, which answers with token ids: what llama-completion prints may lose its
end on a busy machine, also with the bare rpc-server.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

LIMIT = 180.0
"""Seconds until llama-server must answer: a guard against hanging."""
TOKENS = 48


def main(program: str, model: str, rpc: str) -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-m", model, "-ngl", "99", "-c", "256", "--port", str(port), "--no-warmup"]
    command += ["--rpc", rpc] if rpc else []
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        wanted = {
            "prompt": "The quick brown fox", "n_predict": TOKENS, "temperature": 0, "seed": 1,
            "ignore_eos": True, "return_tokens": True, "cache_prompt": False,
        }  # fmt: skip
        answer = _ask(f"http://127.0.0.1:{port}/completion", json.dumps(wanted).encode(), server)
    finally:
        server.terminate()
        server.wait()
    print(json.dumps(answer["tokens"]))
    return 0


def _ask(url: str, body: bytes, server: subprocess.Popen[bytes]) -> dict[str, list[int]]:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, body, timeout=LIMIT) as answer:
                plain: dict[str, list[int]] = json.load(answer)
                return plain
        except (urllib.error.URLError, ConnectionError):  # not up yet, or still loading
            time.sleep(0.05)
    raise SystemExit(f"llama-server did not answer (status {server.poll()})")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
