"""Stands where an rpc-server of another llama.cpp stands: its arguments are a version, then `--host` and `--port`.

It answers what a worker asks to know of it, in the form of its version; a client may stay as long as it likes.
"""

import socket
import struct
import sys

HELLO, COUNT, MEMORY = 14, 15, 11


def answers(version: list[int], command: int, size: int) -> bytes | None:
    """What it says to a request; None where it hangs up."""
    capabilities = 24 if version >= [4] else 0  # in HELLO, both ways
    if command == HELLO and size == capabilities:
        return bytes([*version, *([0] if capabilities else [])]) + bytes(capabilities)
    if command == COUNT:
        return struct.pack("<I", 1)
    return struct.pack("<QQ", 1 << 30, 2 << 30) if command == MEMORY else None


def main() -> None:
    version = [int(number) for number in sys.argv[1].split(".")]
    with socket.create_server((sys.argv[-3], int(sys.argv[-1]))) as listener:
        while True:
            client, _ = listener.accept()
            with client:
                while head := client.recv(9, socket.MSG_WAITALL):
                    command, size = struct.unpack("<BQ", head)
                    body = answers(version, command, size)
                    if body is None:
                        break
                    client.recv(size, socket.MSG_WAITALL)
                    client.sendall(struct.pack("<Q", len(body)) + body)


if __name__ == "__main__":
    main()
