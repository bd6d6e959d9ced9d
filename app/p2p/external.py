"""An rpc-server that somebody else runs (`--no-runner`): nothing to start, only an address to dial and to watch."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from app.p2p.rpc import Probe, RpcError
from app.p2p.server import CHECK_LIMIT, Down, OnChange, Ready, ServerState, Starting, describe

LOOK_INTERVAL = 2.0
"""Seconds between looks for a server that is not there."""
PATIENCE = 600.0
"""Seconds that a look waits for its answer. Not less: rpc-server dies of SIGPIPE when it answers somebody who
has gone, and one that computes for long is not ours to kill."""
STOP_LIMIT = 1.0
"""Seconds that `stop` waits for a look to end."""

log = logging.getLogger(__name__)


class ExternalServer:
    """An `RpcServer` at an address; its methods are described there. It is looked at only when nobody uses it."""

    def __init__(
        self,
        address: tuple[str, int],
        probe: Callable[[socket.socket, float], Probe],
        on_change: OnChange,
    ) -> None:
        """`address`: host and port. `probe` is `rpc.probe`."""
        self._address = address
        self._probe = probe
        self._on_change = on_change
        self._state: ServerState = Starting()
        self._changing = threading.Lock()
        self._stopping = threading.Event()
        self._lost = threading.Event()
        """Whether to look again."""
        self._looked = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="external server", daemon=True)

    @property
    def state(self) -> ServerState:
        """The newest state."""
        return self._state

    def start(self) -> None:
        """Look for the server until it is there."""
        log.info("You need to start llama-cpp-rpc-server on '%s:%d'", *self._address)
        self._lost.set()
        self._thread.start()

    def dial(self, timeout: float) -> socket.socket:
        """A connection to the server; that nobody listens there any more is noticed."""
        try:
            connection = socket.create_connection(self._address, timeout)
        except TimeoutError:
            raise  # it has its hands full
        except OSError:
            self._lost.set()
            raise
        connection.settimeout(None)
        return connection

    def check_after_lease(self) -> bool:
        """Whether the server answers within `CHECK_LIMIT`; if not, it is waited for."""
        if self._stopping.is_set():
            return False
        self._looked.clear()
        self._lost.set()
        if not self._looked.wait(CHECK_LIMIT):
            self._change(self._down(f"nothing within {CHECK_LIMIT:g} s"))
            self._lost.set()  # the look may have ended just before this
        return isinstance(self._state, Ready)

    def stop(self) -> None:
        """Look no more; nothing is told any more."""
        self._stopping.set()
        self._lost.set()
        self._thread.join(STOP_LIMIT)

    def _watch(self) -> None:
        while self._lost.wait() and not self._stopping.is_set():
            self._lost.clear()
            answer = self._look()
            self._change(answer)
            self._looked.set()
            if isinstance(answer, Down):
                self._stopping.wait(LOOK_INTERVAL)
                self._lost.set()

    def _look(self) -> Ready | Down:
        try:
            with socket.create_connection(self._address, CHECK_LIMIT) as connection:
                return describe(self._probe(connection, PATIENCE), ())
        except (OSError, RpcError) as error:
            return self._down(str(error))

    def _down(self, trouble: str) -> Down:
        host, port = self._address
        return Down(f"the rpc-server on '{host}:{port}' does not answer: {trouble}")

    def _change(self, state: Ready | Down) -> None:
        """Tell `state`, unless it is only what was known."""
        with self._changing:
            news = type(state) is not type(self._state)
            self._state = state
            if news and not self._stopping.is_set():
                self._on_change(state)
