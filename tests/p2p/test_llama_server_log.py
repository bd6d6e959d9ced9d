"""Goal: what llama-server says of itself is read as it really says it, and nothing is made up."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from app.p2p.llama_server_log import HERE, Loaded, LogReader

# What the pinned llama-server wrote, with two workers of which one has two devices.
LOADED = b"""\
0.00.007.225 I cmn  common_param: common_params_print_info: verbosity = 4 (adjust with the `-lv N` CLI arg)
0.00.007.735 I cmn  common_param:   - RPC0    : 127.0.0.1:26001 (24105 MiB, 24105 MiB free)
0.00.021.369 I load_tensors: offloaded 5/5 layers to GPU
0.00.021.386 I load_tensors:   CPU_Mapped model buffer size =     0.13 MiB
0.00.021.399 I load_tensors: RPC0[127.0.0.1:26001] model buffer size =     3.38 MiB
0.00.021.400 I load_tensors: RPC1[127.0.0.1:26001] model buffer size =  1024.00 MiB
0.00.021.401 I load_tensors: RPC0[127.0.0.1:26002] model buffer size =     2.25 MiB
0.00.026.688 I llama_kv_cache: RPC0[127.0.0.1:26001] KV buffer size =     0.50 MiB
0.00.028.527 I sched_reserve: RPC0[127.0.0.1:26001] compute buffer size =     1.63 MiB
"""
LISTENS = b"0.00.042.113 I srv  llama_server: listening on http://127.0.0.1:8080\n"
BUFFERS = {HERE: 0.13, "127.0.0.1:26001": 1027.38, "127.0.0.1:26002": 2.25}


def read(*pieces: bytes) -> list[Loaded]:
    reader = LogReader()
    return [ready for piece in pieces if (ready := reader.feed(piece)) is not None]


def test_who_holds_how_much_and_where_it_listens() -> None:
    (ready,) = read(LOADED + LISTENS)
    assert ready.url == "http://127.0.0.1:8080"
    assert ready.buffers == pytest.approx(BUFFERS)


def test_it_does_not_matter_how_the_bytes_arrive() -> None:
    log = LOADED + LISTENS
    for size in (1, 7, 100):
        (ready,) = read(*(log[at : at + size] for at in range(0, len(log), size)))
        assert ready.buffers == pytest.approx(BUFFERS)


def test_it_is_not_ready_before_it_says_so() -> None:
    assert read(LOADED, LISTENS[:-1]) == []


@pytest.mark.parametrize(
    "line",
    [
        b"0.00.1 I print_info: general.name = llama_server: listening on http://evil\n",
        b"0.00.1 I print_info: general.name = load_tensors: RPC0[a] model buffer size = . MiB\n",
        b"0.00.1 I load_tensors: RPC0[a] model buffer size = . MiB\n",
    ],
)
def test_a_models_name_is_not_believed(line: bytes) -> None:
    assert read(line, LISTENS) == [Loaded("http://127.0.0.1:8080", {})]


def test_once_it_listens_its_clients_words_are_not_taken_for_its_own() -> None:
    reader = LogReader()
    assert reader.feed(LISTENS) is not None
    assert reader.feed(b"llama_server: listening on http://evil\n") is None


def test_an_address_is_one() -> None:
    assert read(b"llama_server: listening on http://evil\x1b]0;owned\x07\n", LISTENS) == [
        Loaded("http://127.0.0.1:8080", {})
    ]


def test_what_it_does_not_tell_is_left_out() -> None:
    assert read(LISTENS) == [Loaded("http://127.0.0.1:8080", {})]


@pytest.mark.parametrize(
    ("line", "url"),
    [
        (b"llama_server: listening on https://0.0.0.0:443\n", "https://0.0.0.0:443"),  # --no-log-prefix
        (b"\x1b[34m0.00.1\x1b[0m \x1b[32mI srv  llama_server: listening on http://[::1]:1\x1b[0m\n", "http://[::1]:1"),
        (b"I srv  llama_server: listening on unix:///run/llama.sock\r\n", "unix:///run/llama.sock"),
    ],
)
def test_the_shapes_of_the_line(line: bytes, url: str) -> None:
    (ready,) = read(line)
    assert ready.url == url


def test_a_prompt_in_the_log_is_no_line_of_its_own() -> None:
    assert read(b"I slot: prompt 'load_tensors: RPC0[x:1] model buffer size = 5 MiB'\n" + LISTENS)[0].buffers == {}
    assert read(b"I slot: prompt 'llama_server: listening on http://x is what it says'\n") == []


def test_bytes_of_any_kind_and_lines_of_any_length() -> None:
    assert read(bytes(range(256)) * 100, b"\n", LISTENS) == [Loaded("http://127.0.0.1:8080", {})]


def test_every_byte_is_passed_on_as_it_comes() -> None:
    script = (
        "import os, sys\n"
        "from app.p2p.llama_server_log import PassedOn\n"
        "reading, writing = os.pipe()\n"
        "output = PassedOn(reading, lambda ready: print(ready.url, flush=True))\n"
        "os.write(writing, sys.stdin.buffer.read()); os.close(writing)\n"
        "output.wait_for_end(30)\n"
    )
    written = b"begun\r...\x1b[31m\xff\n" + LISTENS + b"no end"
    done = subprocess.run([sys.executable, "-c", script], input=written, capture_output=True, check=True)
    assert done.stderr == written
    assert done.stdout == b"http://127.0.0.1:8080" + os.linesep.encode()
