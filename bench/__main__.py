"""`python3 build.py bench WHAT ...`"""

from __future__ import annotations

import sys

from bench import discovery, start

BENCHES = {"start": start.run, "discovery": discovery.run}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        if name not in BENCHES:
            sys.exit(f"error: there is no bench {name!r}\nhint: {', '.join(BENCHES)}")
        BENCHES[name]()
