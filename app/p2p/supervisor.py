"""Keeps our own rpc-server running: starts it, sees that it answers, starts it again, gives up in time."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from app.errors import ExitCode, WorkerError
from app.launch import ServerCommand
from app.p2p.keeper import Child, Keeper, KeeperLost
from app.p2p.rpc import Device, Probe, RpcError, parse_devices
from app.p2p.server import Down, Failed, OnChange, Ready, Starting, State
from app.p2p.server_output import ServerOutput

PROBE_INTERVAL = 0.05
"""Seconds between looks whether a server that has been started listens yet."""
LEASE_CHECK_LIMIT = 3.0
"""Seconds to answer after a lease. A killed prompt leaves the server computing: 2.7 s were seen."""
FIRST_DELAY = 0.25
"""Seconds before a start that follows a crash; each further one waits twice as long ..."""
MAX_DELAY = 30.0
"""... up to this. So no minute sees more than 8 starts."""
STEADY = 60.0
"""Seconds of answering after which a crash counts as the first one again."""
ATTEMPTS = 5
"""Starts in a row that never answered, after which we give up."""
LAST_LINES = 20
"""Lines of the server's that an error shows."""
DEVICES_LIMIT = 1.0
"""Seconds for the list of devices to come through the pipe: it was printed before our probe was answered."""
OUTPUT_LIMIT = 1.0
"""Seconds for the last lines of a server that has ended: a child of its own may hold the pipe open."""
STOP_LIMIT = 5.0
"""Seconds that `stop` waits for the thread: the files may just be being unpacked."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _End:
    """How one run ended."""

    how: str
    """To be read after "rpc-server"."""
    lines: list[str]
    answered: float | None = None
    """Seconds that it was ready; None when it never was."""
    hung: bool = False
    """Killed because it did not answer after a lease; no fault of its start."""


class Supervisor:
    """A `Server` that a keeper runs for us."""

    def __init__(
        self,
        keeper: Keeper,
        prepare: Callable[[], ServerCommand],
        probe: Callable[[socket.socket, float], Probe],
        on_change: OnChange,
        *,
        start_timeout: float,
        port: int | None = None,
        echo: Callable[[str], None] = partial(print, flush=True),
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """`prepare` is called before every start: it verifies the files, unpacks them again where they were
        harmed, and raises `WorkerError` where it cannot. `probe` is `rpc.probe`. `start_timeout`: seconds from
        a start to the first answer. `port`: see `Keeper.spawn`. `echo` gets every line that the server prints.
        """
        self._keeper = keeper
        self._prepare = prepare
        self._probe = probe
        self._on_change = on_change
        self._start_timeout = start_timeout
        self._port = port
        self._echo = echo
        self._clock = clock
        self._stopping = threading.Event()
        self._pause = pause or self._stopping.wait
        self._changing = threading.Lock()
        self._state: State = Starting()
        self._spawning = threading.Lock()
        self._child: Child | None = None
        self._hung: Child | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    @property
    def state(self) -> State:
        """The newest state."""
        return self._state

    def start(self) -> None:
        """Start the server, in a thread that keeps it running."""
        self._thread.start()

    def dial(self, timeout: float) -> socket.socket:
        """A connection to the server, blocking; raises `OSError` when there is none within `timeout` seconds."""
        child = self._child
        if child is None or not isinstance(self._state, Ready):
            raise ConnectionRefusedError("rpc-server is not ready")
        return self._keeper.dial(child, timeout)

    def check_after_lease(self) -> bool:
        """Whether the server answers within `LEASE_CHECK_LIMIT`; if it hangs it is started again."""
        child, state = self._child, self._state
        if child is None or not isinstance(state, Ready):
            return False
        deadline = self._clock() + LEASE_CHECK_LIMIT
        try:
            with self._keeper.dial(child, LEASE_CHECK_LIMIT) as connection:
                probe = self._probe(connection, max(deadline - self._clock(), 0.001))
        except (OSError, RpcError) as error:
            self._restart(child, f"did not answer after a lease: {error}")
            return False
        with self._changing:
            if self._state is state:
                self._state = Ready(with_memory(state.devices, probe), probe.protocol)
        return True

    def stop(self) -> None:
        """End the server, and the thread."""
        self._stopping.set()
        with self._spawning:  # what has not been spawned by now never will be
            child = self._child
        if child is not None:
            with_suppressed_loss(self._keeper.kill, child)
        self._thread.join(STOP_LIMIT)
