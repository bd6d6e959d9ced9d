"""Goal: a script is played turn by turn, and its two ends agree on every byte."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from threading import Thread

import pytest

from bench.traffic import BLOCK, Client, Script, Turn, serve, size


@pytest.fixture
def port() -> Iterator[int]:
    """Where a server plays its part, once, and then reads to the end."""
    rest: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def play() -> None:
            sock, _ = listener.accept()
            with sock:
                serve(sock, sock.recv(1))
                rest.append(sock.recv(1))

        thread = Thread(target=play)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)
    assert rest == [b""], "the client sent more than the script says, or the server did not come to its end"


@pytest.mark.parametrize(
    "script",
    [
        (Turn((64,), (64,), 5),),
        (Turn((3 * BLOCK + 1,), (1,)),),
        (Turn((1,), (3 * BLOCK + 1,)),),
        (Turn((1, 8, 0, 1, 8, 300), (8, 2 * BLOCK), 2), Turn((1, 8, 4), (8, 1))),
    ],
)
def test_every_turn_is_played_and_timed(port: int, script: Script) -> None:
    with Client(port, script) as client:
        took = client.play()
    assert len(took) == sum(turn.times for turn in script)
    assert all(seconds > 0 for seconds in took)


def test_the_size_of_a_script_counts_pieces_and_repeats() -> None:
    assert size((Turn((1, 8, 100), (8, 4), 3), Turn((5,), (6,)))) == (332, 42)
