"""Stands in for a server that was taken over: tries what it is told to, and prints what it got as JSON."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from app.launch import ServerCommand

_PROGRAM = r"""
import ctypes, json, os, resource, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")

def peek(pid):
    class Place(ctypes.Structure):
        _fields_ = [("start", ctypes.c_void_p), ("length", ctypes.c_size_t)]
    there = Place(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    # its address there or not: refused is EPERM, and only that
    if libc.process_vm_readv(pid, ctypes.byref(there), 1, ctypes.byref(there), 1, 0) < 0 and ctypes.get_errno() == 1:
        raise OSError(1, "refused")

def name_a_thread():
    waiting = threading.Event()
    thread = threading.Thread(target=waiting.wait)
    thread.start()
    try:
        open(f"/proc/self/task/{thread.native_id}/comm", "w").write("driver")
    finally:
        waiting.set()

def send(path, how):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", path) if how == "sendto" else sender.sendmsg([b"x"], [], 0, path)

def fork():
    if os.fork() == 0:
        os._exit(0)

TRIES = {
    "read": lambda path: open(path, "rb").read(1),
    "write": lambda path: open(path, "ab").close(),
    "make": lambda path: open(path, "xb").close(),
    "list": os.listdir,
    "memory": lambda pid: open(f"/proc/{pid}/mem", "rb"),
    "environment": lambda pid: open(f"/proc/{pid}/environ", "rb").read(),
    "command line": lambda pid: open(f"/proc/{pid}/cmdline", "rb").read(),
    "seize": lambda pid: checked(libc.ptrace(0x4206, pid, 0, 0)),
    "peek": peek,
    "fork": lambda _: fork(),
    "limit": lambda pid: resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0)),
    "signal": lambda pid: os.kill(pid, 0),
    "connect": lambda port: socket.create_connection(("127.0.0.1", port), 5).close(),
    "service": lambda path: socket.socket(socket.AF_UNIX).connect(path),
    "abstract service": lambda name: socket.socket(socket.AF_UNIX).connect("\0" + name),
    "sendto": lambda path: send(path, "sendto"),
    "sendmsg": lambda path: send(path, "sendmsg"),
    "listen": lambda _: socket.create_server(("127.0.0.1", 0)).close(),
    "open to all": lambda path: os.chmod(path, 0o666),
    "empty": lambda path: os.truncate(path, 0),
    "name a thread": lambda _: name_a_thread(),
    "io_uring": lambda _: checked(libc.syscall(425, 1, ctypes.create_string_buffer(120))),
    "capabilities": lambda _: open("/proc/self/status").read().split("CapEff:")[1].split()[0],
}
got = {}
for what, about in json.loads(sys.argv[1]):
    try:
        told = TRIES[what](about)
        got[f"{what} {about}"] = told if what == "capabilities" else True
    except OSError as error:
        got[f"{what} {about}"] = False
print(json.dumps(got), flush=True)
"""


@dataclass(frozen=True)
class Try:
    """One thing to try, and what it is about: a path, a process id, a port."""

    what: str
    about: str | int = ""

    def __str__(self) -> str:
        return f"{self.what} {self.about}"


def attacker(tries: list[Try], cwd: Path = Path("/"), **env: str) -> ServerCommand:
    """A program that does. It runs in the system's Python where there is one, since another's may be out of reach."""
    python = shutil.which("python3", path="/usr/bin:/bin") or os.path.realpath(sys.executable)
    library = {} if python.startswith(("/usr", "/bin")) else {"LD_LIBRARY_PATH": f"{sys.base_prefix}/lib"}
    told = json.dumps([[one.what, one.about] for one in tries])
    return ServerCommand([python, "-I", "-S", "-c", _PROGRAM, told], {"PATH": os.defpath, **library, **env}, cwd)
