"""Entry of the full build: the command line with p2p."""

import sys

from app import cli, p2p

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv, p2p))
