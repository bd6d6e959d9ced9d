"""Entry of the small build: the command line with the stub where p2p stands."""

import sys

from app import cli, p2p_stub

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv, p2p_stub))
