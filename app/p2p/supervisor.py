"""Keeps our own rpc-server running: starts it, sees that it answers, starts it again, gives up in time."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from app.cache.directory import cache_directory
from app.errors import ExitCode, WorkerError
from app.launch import ServerCommand, tell_status
from app.p2p.backoff import Backoff
from app.p2p.keeper import Child, Keeper, KeeperLost
from app.p2p.rpc import DeviceName, Probe, RpcError, parse_devices
from app.p2p.server import CHECK_LIMIT, Down, Failed, OnChange, Ready, ServerState, Starting, describe
from app.p2p.server_cache import ServerCache
from app.p2p.server_output import ServerOutput

PROBE_INTERVAL = 0.05
"""Seconds between looks whether a server that has been started listens yet."""
FIRST_DELAY = 0.25
"""Seconds before a start that follows a crash: so no minute sees more than 8 starts."""
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

CRASHING_ADVICE = "look at its arguments, and give it longer with --start-timeout if it is slow"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _End:
    """How one run ended."""

    how: str
    """To be read after "rpc-server"."""
    lines: list[str] = field(default_factory=list)
    answered: float | None = None
    """Seconds that it was ready; None when it never was."""
    hung: bool = False
    """Killed because it did not answer after a lease; no fault of its start."""


def print_line(line: str) -> None:
    """A line of the server's, to where the original puts it."""
    print(line, flush=True)


class Supervisor:
    """An `RpcServer` that a keeper runs for us; its methods are described there."""

    def __init__(
        self,
        keeper: Keeper,
        prepare: Callable[[], ServerCommand],
        probe: Callable[[socket.socket, float], Probe],
        on_change: OnChange,
        *,
        start_timeout: float,
        port: int | None = None,
        after_vain_start: Callable[[], None] = lambda: None,
        advice: str = CRASHING_ADVICE,
        cache: ServerCache | None = None,
        echo: Callable[[str], None] = print_line,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] | None = None,
    ) -> None:
        """`prepare` is called before every start: it verifies the files, unpacks them again where they were
        harmed, and raises `WorkerError` where it cannot. `probe` is `rpc.probe`. `start_timeout`: seconds from
        a start to the first answer. `port`: see `Keeper.spawn`. `after_vain_start` is called when a start was never
        answered. `advice`: what the user can do about a server that keeps crashing. `cache` looks after its `-c`.
        `echo` gets every line that the server prints.
        """
        self._keeper = keeper
        self._prepare = prepare
        self._probe = probe
        self._on_change = on_change
        self._start_timeout = start_timeout
        self._port = port
        self._after_vain_start = after_vain_start
        self._advice = advice
        self._echo = echo
        self._clock = clock
        self._stopping = threading.Event()
        self._pause = pause or self._stopping.wait
        self._cache = cache or ServerCache()
        self._changing = threading.Lock()
        self._state: ServerState = Starting()
        self._spawning = threading.Lock()
        self._child: Child | None = None
        self._hung: Child | None = None
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    @property
    def state(self) -> ServerState:
        """The newest state."""
        return self._state

    def start(self) -> None:
        """Start the server, in a thread that keeps it running."""
        self._thread.start()

    def dial(self, timeout: float) -> socket.socket:
        """A connection to the server that is ready."""
        child = self._child
        if child is None or not isinstance(self._state, Ready):
            raise ConnectionRefusedError("rpc-server is not ready")
        return self._keeper.dial(child, timeout)

    def check_after_lease(self) -> bool:
        """Whether the server answers within `CHECK_LIMIT`; when it hangs it is started again."""
        child, state = self._child, self._state
        if child is None or not isinstance(state, Ready):
            return False
        try:
            probe = self._ask(child, CHECK_LIMIT)
            if probe is None:
                return False
        except TimeoutError as error:
            log.warning("rpc-server %s after a client had gone; it is started again", error)
            self._hung = child
            self._change(Down(f"rpc-server {error} after a client had gone"), only_after=state)
            with suppress(KeeperLost):
                self._keeper.kill(child)  # which ends the wait of the thread that keeps it running
            return False
        except KeeperLost:  # the thread finds out by itself
            return False
        self._cache.settled()
        with self._changing:
            if self._state is state:
                self._state = describe(probe, state.devices)
        return True

    def stop(self) -> None:
        """End the server and the thread; nothing is told any more."""
        self._stopping.set()
        with self._spawning:  # what has not been spawned by now never will be
            child = self._child
        if child is not None:
            with suppress(KeeperLost):
                self._keeper.kill(child)
        self._thread.join(STOP_LIMIT)
        self._cache.close()

    def _change(self, state: ServerState, only_after: ServerState | None = None) -> None:
        with self._changing:
            if not self._stopping.is_set() and (only_after is None or only_after is self._state):
                self._state = state
                self._on_change(state)

    def _run(self) -> None:
        try:
            self._keep_running()
        except WorkerError as error:
            self._change(Failed(error))
        except KeeperLost as error:
            self._change(
                Failed(WorkerError(str(error), "start the worker again; the system log may tell who killed it"))
            )
        except Exception as error:  # a thread that ends unseen would leave a worker that never answers
            log.exception("the supervisor broke")
            self._change(Failed(WorkerError(f"the supervisor broke: {error}", "report this, with the log")))

    def _keep_running(self) -> None:
        vain, backoff = 0, Backoff(FIRST_DELAY)
        while not self._stopping.is_set():
            self._change(Starting())
            end = self._run_once()
            if self._stopping.is_set():
                return
            if end.hung:  # killed in the middle of a client's work, again and again if need be: no crash
                continue
            self._change(Down(f"rpc-server {end.how}"))
            vain = vain + 1 if end.answered is None else 0
            if vain:
                self._after_vain_start()
            if vain == ATTEMPTS:
                raise _crashing(end, self._advice)
            delay = backoff.after(end.answered)
            log.warning("rpc-server %s; it is started again in %g s", end.how, delay)
            self._pause(delay)

    def _run_once(self) -> _End:
        command = self._prepare()
        self._cache.begin(cache_directory(command.argv, command.env))
        with self._spawning:
            if self._stopping.is_set():
                return _End("was not started")
            try:
                child = self._child = self._keeper.spawn(command, self._port)
            except KeeperLost:
                raise
            except OSError as error:
                return _End(f"cannot be started: {error.strerror or error}")
        output = ServerOutput(child.output, self._echo)
        how, since = "", None
        try:
            if probe := self._ask(child, self._start_timeout):
                since = self._clock()
                self._change(describe(probe, _printed_devices(output, len(probe.memory))))
        except TimeoutError as error:
            how = str(error)
            self._keeper.kill(child)
        status = child.wait(None)
        return _End(
            how or tell_status(status),
            output.wait_for_end(OUTPUT_LIMIT)[-LAST_LINES:],
            None if since is None else self._clock() - since,
            self._hung is child,
        )

    def _ask(self, child: Child, limit: float) -> Probe | None:
        """What the server says of itself; None when it ended, `TimeoutError` when it is silent for `limit` seconds."""
        deadline = time.monotonic() + limit
        trouble = ""
        while (left := deadline - time.monotonic()) > 0:
            try:
                with self._keeper.dial(child, left) as connection:
                    return self._probe(connection, deadline - time.monotonic())
            except KeeperLost:
                raise
            except (OSError, RpcError) as error:
                trouble = str(error)  # the exception itself would keep `child` and its descriptor in a cycle
            if child.wait(PROBE_INTERVAL) is not None:
                return None
        raise TimeoutError(f"did not answer within {limit:g} s ({trouble})")


def _printed_devices(output: ServerOutput, number: int) -> tuple[DeviceName, ...]:
    def devices(lines: list[str]) -> tuple[DeviceName, ...]:
        return parse_devices("".join(f"{line}\n" for line in lines))

    return devices(output.wait_until(lambda lines: len(devices(lines)) >= number, DEVICES_LIMIT))


def _crashing(end: _End, advice: str) -> WorkerError:
    return WorkerError(
        "\n  ".join([f"rpc-server keeps crashing: {ATTEMPTS} starts in vain, the last one {end.how}", *end.lines]),
        f"above are its last lines; {advice}",
        ExitCode.CRASHING,
    )
