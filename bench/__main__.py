"""`python3 build.py bench [--quick] [WHAT ...]`"""

from __future__ import annotations

import argparse
import sys

from bench import discovery, picture, record, relay, scale, start, tokens
from bench.processes import BenchError

BENCHES = {
    "relay": relay.run,
    "tokens": tokens.run,
    "scale": scale.run,
    "start": lambda _: start.run(),
    "discovery": lambda _: discovery.run(),
    "record": record.run,
    "picture": picture.run,
}
WHOLE = ("relay", "tokens", "scale", "start")
"""Without WHAT. `discovery` needs root; `record` and `picture` write files of the project."""
QUICK = 0.02
"""Of the bytes and rounds of a whole run: shows that it works, measures little."""


def main(argv: list[str]) -> int:
    """Run the benches named in `argv`; the exit status."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("what", nargs="*", metavar="WHAT", help=", ".join(BENCHES))
    parser.add_argument("--quick", action="store_true", help="once and little, to see that it works")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.what if name not in BENCHES]:
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(BENCHES)}")
    try:
        for name in arguments.what or WHOLE:
            BENCHES[name](QUICK if arguments.quick else 1.0)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
