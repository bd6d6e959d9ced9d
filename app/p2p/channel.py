"""TLS over memory BIOs, and the socket around it."""

from __future__ import annotations

import select
import socket
import ssl
import time
from contextlib import suppress
from threading import Lock
from types import TracebackType

from app.p2p.identity import token_refused

BLOCK = 256 * 1024
"""Bytes moved at a time. Anything from 64 KiB to 1 MiB was as fast; `SSLSocket`, at one 16 KiB record, was not."""
HANDSHAKE_TIMEOUT = 4.0
"""Seconds for the whole handshake: a LAN takes milliseconds, and a peer that dribbles is gone within five."""
FIRST_BYTE_TIMEOUT = 2.0
"""Seconds in which a client must begin: a connection that stays silent holds its slot no longer."""
CLOSE_TIMEOUT = 1.0
"""Seconds that the goodbye waits for room behind what is still being sent."""
MAX_HANDSHAKE = 16 * 1024
"""Bytes taken from a peer that has not proved itself; with our certificates a flight has about 1 KiB."""

_HANDSHAKE_BLOCK = 4096
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
_WORKER_USER_TIMEOUT_MS = 20_000


class ChannelError(Exception):
    """The connection can be used no more; nothing wrong was handed out. Its text is for the log."""


class ChannelCut(ChannelError):
    """It ended in mid-stream: no goodbye was said."""


class ChannelRefused(ChannelError):
    """One side does not take the other's certificate: another token."""


class Channel:
    """A TLS connection that one thread reads while others write.

    An OpenSSL object must not be used by two threads at once, so one lock
    guards it and is never held while waiting for the socket. A second keeps
    what is sent in the order in which it was encrypted, a third keeps the
    socket open while somebody reads from it.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        """Take over `sock`, which is connected; `close` closes it."""
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._using_tls = Lock()
        self._sending = Lock()
        self._reading = Lock()
        self._closing = Lock()
        self._closed = False
        self._raw = memoryview(b"")
        _notice_a_dead_peer(sock, worker=server_side)

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def tls(self) -> ssl.SSLObject:
        """For `identity.check_peer` after the handshake; never read or write through it."""
        return self._tls

    @property
    def closed(self) -> bool:
        """Whether this side has closed."""
        return self._closed

    def peer_certificate(self) -> bytes:
        """The peer's leaf, DER. Raises ChannelError when it showed none."""
        der = self._tls.getpeercert(binary_form=True)
        if der is None:
            raise ChannelError("the peer showed no certificate")
        return der

    def handshake(self, timeout: float = HANDSHAKE_TIMEOUT, first_byte: float | None = None) -> None:
        """Agree on keys within `timeout` seconds; the first byte must come within `first_byte` of them.

        A client's handshake ends before the server has judged the client's
        certificate: the server's refusal comes with the first read. Raises
        ChannelRefused, ChannelCut or ChannelError; `close` is still the caller's.
        """
        deadline = time.monotonic() + timeout
        try:
            self._shake_hands(deadline, timeout if first_byte is None else first_byte)
            self._sock.settimeout(None)
        except ssl.SSLError as error:
            self._last_words()  # the alert that tells the peer why
            raise _explain(error) from error
        except TimeoutError as error:
            raise ChannelError("the handshake took too long") from error
        except OSError as error:
            raise ChannelCut(f"the connection broke in the handshake: {error}") from error
        self._raw = memoryview(bytearray(BLOCK))

    def _shake_hands(self, deadline: float, first_byte: float) -> None:
        room = MAX_HANDSHAKE
        patience = first_byte
        while True:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            if self._outgoing.pending:
                self._sock.settimeout(_left(deadline))
                self._sock.sendall(self._outgoing.read())
            if done:
                return
            if not room:
                raise ChannelError("the handshake is too long")
            self._sock.settimeout(min(patience, _left(deadline)))
            data = self._sock.recv(min(room, _HANDSHAKE_BLOCK))
            if not data:
                raise ChannelCut("the connection ended in the handshake")
            self._incoming.write(data)
            room -= len(data)
            patience = _left(deadline)

    def read(self, n: int, timeout: float | None = None) -> bytes:
        """1 to `n` bytes, or none when the peer has closed; otherwise as `read_into`."""
        buffer = bytearray(n)
        return bytes(buffer[: self.read_into(memoryview(buffer), timeout)])

    def read_into(self, view: memoryview, timeout: float | None = None) -> int:
        """Fill `view` with what there is, at least one byte; 0 when the peer has closed with a goodbye.

        Raises ChannelCut when the stream just stops, ChannelRefused, or
        ChannelError when it was tampered with or this side has closed;
        TimeoutError when nothing came for `timeout` seconds, and then it may be
        tried again.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._reading:
            while True:
                count = self._decrypt(view)
                if self._outgoing.pending:  # an answer to the peer's change of keys
                    self._flush()
                if count is not None:
                    return count
                received = self._receive(deadline)
                with self._using_tls:
                    self._incoming.write(self._raw[:received])

    def _receive(self, deadline: float | None) -> int:
        try:
            if deadline is not None:
                _wait_for(self._sock, select.POLLIN, _left(deadline))
            received = self._sock.recv_into(self._raw)
        except TimeoutError:
            if deadline is None:
                raise ChannelCut("the peer vanished") from None  # ETIMEDOUT: keepalive, TCP_USER_TIMEOUT
            raise
        except OSError as error:
            raise self._broken(error) from error
        if not received:
            raise self._broken(None)
        return received

    def _decrypt(self, view: memoryview) -> int | None:
        """How many bytes of `view` are filled; 0 is the end, None when no whole record is there."""
        count = 0
        with self._using_tls:
            try:
                while True:
                    got = self._tls.read(len(view) - count, view[count:] if count else view)  # type: ignore[arg-type]
                    count += got
                    # The second read costs an exception when nothing is left, so look first.
                    if not got or count == len(view) or not (self._incoming.pending or self._tls.pending()):
                        return count
            except ssl.SSLWantReadError:
                return count or None
            except ssl.SSLZeroReturnError:
                return count
            except ssl.SSLError as error:
                failure = error
        self._last_words()
        raise _explain(failure) from failure

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, however long the peer takes to read. One call's bytes stay together.

        Raises ChannelCut when the peer has gone, ChannelError when this side
        has closed or the stream was tampered with.
        """
        view = memoryview(data)
        with self._sending:
            for start in range(0, len(view), BLOCK):
                self._send(self._encrypt(view[start : start + BLOCK]))
        self._flush()

    def _encrypt(self, view: memoryview) -> bytes:
        with self._using_tls:
            try:
                done = 0
                while done < len(view):
                    done += self._tls.write(view[done:] if done else view)
            except ssl.SSLError as error:
                raise _explain(error) from error
            return self._outgoing.read()

    def _send(self, sealed: bytes) -> None:
        try:
            self._sock.sendall(sealed)
        except OSError as error:
            raise self._broken(error) from error

    def _flush(self) -> None:
        """Send what OpenSSL wants sent, unless somebody is sending: whoever it is looks again after letting go."""
        while self._outgoing.pending and self._sending.acquire(blocking=False):
            try:
                with self._using_tls:
                    sealed = self._outgoing.read()
                self._send(sealed)
            finally:
                self._sending.release()

    def close(self) -> None:
        """Say goodbye, wake whoever reads or writes, close the socket. From any thread, any number of times.

        A peer that reads nothing gets no goodbye; neither does one in whose
        direction another thread is still writing: it sees a cut, which it is.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._last_words(goodbye=True)
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            # Nobody may be left in a system call with this descriptor when its number becomes free.
            with self._reading, self._sending:
                self._sock.close()

    def _last_words(self, goodbye: bool = False) -> None:
        """Send an alert, or the goodbye that makes the end an end; without ever waiting for long."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            with self._using_tls:
                if goodbye:
                    # It sends, then looks for the peer's answer, which we do not wait for.
                    with suppress(ssl.SSLError):
                        self._tls.unwrap()
                sealed = self._outgoing.read()
            if sealed:
                with suppress(OSError):
                    _wait_for(self._sock, select.POLLOUT, CLOSE_TIMEOUT)
                    self._sock.send(sealed, socket.MSG_DONTWAIT)
        finally:
            self._sending.release()

    def _broken(self, error: OSError | None) -> ChannelError:
        if self._closed:
            return ChannelError("closed on this side")
        return ChannelCut("the connection ended without a goodbye" if error is None else f"the connection broke: {error}")


def _notice_a_dead_peer(sock: socket.socket, *, worker: bool) -> None:
    """Socket options by which a peer that vanished is noticed within 25 seconds.

    Keepalive does it while the connection is idle. With data on the way only
    TCP_USER_TIMEOUT does (75 s and more without), but it also ends one whose
    peer lives and does not read. rpc-server does not read while it computes, so
    a head must not set it.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE.items():
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    if worker:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _WORKER_USER_TIMEOUT_MS)


def _left(deadline: float) -> float:
    """Seconds until `deadline` of time.monotonic. Raises TimeoutError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _wait_for(sock: socket.socket, event: int, timeout: float) -> None:
    """Until `sock` is ready, without touching the time limit that its other users see. Raises TimeoutError."""
    poll = select.poll()
    poll.register(sock, event)
    if not poll.poll(timeout * 1000):
        raise TimeoutError


def _explain(error: ssl.SSLError) -> ChannelError:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return ChannelRefused(f"token refused: {reason}") if token_refused(error) else ChannelError(f"not our peer's TLS: {reason}")
