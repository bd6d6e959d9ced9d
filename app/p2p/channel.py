"""TLS over memory BIOs, and the socket around it."""

from __future__ import annotations

import os
import select
import socket
import ssl
import struct
import time
from contextlib import suppress
from threading import Lock

from app.p2p.identity import token_refused

BLOCK = 320 * 1024
"""Bytes moved at a time: large blocks cost less (docs/SPEED.md), and three of these are still less than 1 MiB."""
HANDSHAKE_TIMEOUT = 4.0
"""Seconds for a whole handshake: on a LAN it takes milliseconds, and who dribbles is to be gone within five."""
FIRST_BYTE_TIMEOUT = 2.0
"""Seconds in which a client must begin, so that a silent connection does not hold its slot for longer."""
CLOSE_TIMEOUT = 1.0
"""Seconds that the goodbye waits for room behind what is still being sent."""
MAX_HANDSHAKE = 16 * 1024
"""Bytes taken from a peer that has not proved itself; with our certificates it sends about 1 KiB."""

_HANDSHAKE_BLOCK = 4096
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
_WORKER_USER_TIMEOUT_MS = 20_000
_RESET = struct.pack("ii", 1, 0)
"""struct linger of socket(7): a close that drops what is unsent and resets the connection."""


class ChannelError(Exception):
    """The connection is of no more use; nothing wrong was handed out. The text is for the log."""


class ChannelCut(ChannelError):
    """It ended in mid-stream: no goodbye was said."""


class ChannelRefused(ChannelError):
    """One side does not take the other's certificate: it has another token."""


class Channel:
    """A TLS connection that one thread reads while others write.

    An OpenSSL object must not be used by two threads at once, so one lock
    guards it and is never held while waiting for the socket. A second keeps
    what is sent in the order in which it was encrypted. A third is held by who
    reads from the socket, so that `close` can tell when nobody does any more.
    Reading never has to send: OpenSSL puts its answer to a change of keys
    before what is written next, as RFC 8446 (4.6.3) allows.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool, server_hostname: str | None = None
    ) -> None:
        """Take over `sock`, which is connected: from now on `close` closes it."""
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)
        self._using_tls = Lock()
        self._sending = Lock()
        self._reading = Lock()
        self._closing = Lock()
        self._closed = False
        self._more = True  # whether a record may be waiting in `_incoming`
        _notice_a_dead_peer(sock, worker=server_side)

    @property
    def tls(self) -> ssl.SSLObject:
        """For `identity.check_peer` once the handshake is done; never read or write through it."""
        return self._tls

    def watch(self) -> int:
        """A descriptor of the socket that is the caller's, and so no other's once the channel is closed.

        Raises ChannelError once this side has closed.
        """
        with self._reading:  # while we hold it the socket stays
            if self._closed:
                raise self._broken()
            return os.dup(self._sock.fileno())

    def peer_gone(self) -> bool:
        """Whether the peer has ended the connection, seen without reading; True also once this side has closed."""
        try:
            _wait_for(self._sock, select.POLLRDHUP, 0)
        except TimeoutError:
            return False
        except (OSError, ValueError):
            pass
        return True

    @property
    def closed(self) -> bool:
        """Whether this side has closed."""
        return self._closed

    def handshake(self, timeout: float = HANDSHAKE_TIMEOUT, first_byte: float | None = None) -> None:
        """Agree on keys within `timeout` seconds; the peer's first byte must come within `first_byte` of them.

        A client's handshake ends before the server has judged the client's
        certificate: a refusal comes with the first read. Raises
        ChannelRefused, ChannelCut or ChannelError; `close` is still the caller's.
        """
        now = time.monotonic()
        begin = timeout if first_byte is None else min(first_byte, timeout)
        with self._reading:
            try:
                self._shake_hands(now + begin, now + timeout)
                self._sock.settimeout(None)
            except ssl.SSLError as error:
                self._last_words()  # the alert tells the peer why
                raise _explain(error) from error
            except TimeoutError as error:
                raise ChannelError("the handshake took too long") from error
            except OSError as error:
                raise self._broken(error) from error

    def _shake_hands(self, begin: float, deadline: float) -> None:
        limit = begin
        room = MAX_HANDSHAKE
        data = b""
        while True:
            with self._using_tls:
                self._incoming.write(data)
                try:
                    self._tls.do_handshake()
                    done = True
                except ssl.SSLWantReadError:
                    done = False
                sealed = self._outgoing.read()
            if sealed:
                self._sock.settimeout(_left(deadline))
                self._sock.sendall(sealed)
            if done:
                return
            if not room:
                raise ChannelError("the handshake is too long")
            self._sock.settimeout(_left(limit))
            data = self._sock.recv(min(room, _HANDSHAKE_BLOCK))
            if not data:
                raise self._broken()
            room -= len(data)
            limit = deadline

    def read(self, n: int, timeout: float | None = None) -> bytes:
        """1 to `n` bytes, none when the peer has said goodbye; for the rest as `read_into`."""
        buffer = bytearray(n)
        return bytes(buffer[: self.read_into(memoryview(buffer), timeout)])

    def read_into(self, view: memoryview, timeout: float | None = None) -> int:
        """Put at least one byte into `view` and tell how many; 0 when the peer has said goodbye.

        What arrives is received into `view` too, before it is decrypted: the rest of `view` is overwritten.
        Raises ChannelCut when the stream just stops, ChannelError when it was
        tampered with or this side has closed, ChannelRefused; TimeoutError when
        nothing came for `timeout` seconds, and then it may be tried again.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._reading:
            received = 0
            while True:
                # Looking for a record where none is costs an exception.
                if received or self._more:
                    count = self._decrypt(view[:received], view)
                    if count is not None:
                        return count
                received = self._receive(view, deadline)

    def _receive(self, view: memoryview, deadline: float | None) -> int:
        if self._closed:  # its socket may be gone; while we hold `_reading` it stays
            raise self._broken()
        if deadline is not None:
            _wait_for(self._sock, select.POLLIN, _left(deadline))
        try:
            received = self._sock.recv_into(view)
        except OSError as error:
            raise self._broken(error) from error
        if not received:
            raise self._broken()
        return received

    def _decrypt(self, sealed: memoryview, view: memoryview) -> int | None:
        """Take in `sealed`; how many bytes of `view` are filled, 0 at the end, None when no whole record is there."""
        count, size = 0, len(view)
        tls, incoming = self._tls, self._incoming
        with self._using_tls:
            if self._closed:  # `close` may have taken what was received
                raise self._broken()
            incoming.write(sealed)
            self._more = True
            try:
                while count < size:  # a record at a time: the innermost loop of all
                    got: int = tls.read(size - count, view[count:])  # type: ignore[assignment]  # into a buffer: a count
                    if not got:
                        return count
                    count += got
                    if not (incoming.pending or tls.pending()):
                        self._more = False
                        break
                return count
            except ssl.SSLWantReadError:
                self._more = False
                return count or None
            except ssl.SSLError as error:
                failure = error
        self._last_words()
        raise _explain(failure) from failure

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`, however long the peer takes to read it. The bytes of one call stay together.

        Raises ChannelCut when the peer has gone, ChannelError when this side
        has closed or the stream was tampered with.
        """
        view = memoryview(data)
        with self._sending:
            for start in range(0, len(view), BLOCK):
                sealed = self._encrypt(view[start : start + BLOCK])
                try:
                    self._sock.sendall(sealed)
                except OSError as error:
                    raise self._broken(error) from error

    def _encrypt(self, view: memoryview) -> bytes:
        with self._using_tls:
            if self._closed:
                raise self._broken()
            try:
                done = self._tls.write(view)
                while done < len(view):
                    done += self._tls.write(view[done:])
            except ssl.SSLError as error:
                raise _explain(error) from error
            return self._outgoing.read()

    def close(self) -> None:
        """Say goodbye, wake whoever reads or writes, close the socket; from any thread, any number of times.

        A peer that reads nothing gets no goodbye, nor does one to which another
        thread is still writing: to them it is a cut, as it should be, and at once.
        """
        with self._closing:
            if self._closed:
                return
            self._closed = True
            with suppress(OSError):
                if not self._last_words(goodbye=True):
                    # A reset overtakes what is stuck; the end of the stream would wait behind it, for ever if need be.
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                self._sock.shutdown(socket.SHUT_RDWR)
            # A descriptor's number may be used again as soon as it is free, so nobody may be left in a system call.
            with self._reading, self._sending:
                self._sock.close()

    def _last_words(self, goodbye: bool = False) -> bool:
        """Send an alert, or the goodbye that makes an end of a cut; False when there was no room for long."""
        if not self._sending.acquire(blocking=False):
            return False
        try:
            with self._using_tls:
                if goodbye:
                    # It says goodbye, then looks for the peer's, which we do not wait for.
                    with suppress(ssl.SSLError):
                        self._tls.unwrap()
                sealed = self._outgoing.read()
            if sealed:
                try:
                    _wait_for(self._sock, select.POLLOUT, CLOSE_TIMEOUT)
                    self._sock.send(sealed, socket.MSG_DONTWAIT)
                except (TimeoutError, BlockingIOError):
                    return False
                except OSError:  # the peer has gone
                    pass
            return True
        finally:
            self._sending.release()

    def _broken(self, error: OSError | None = None) -> ChannelError:
        if self._closed:
            return ChannelError("closed on this side")
        return ChannelCut(f"the connection broke: {error}" if error else "the connection ended without a goodbye")


def _notice_a_dead_peer(sock: socket.socket, *, worker: bool) -> None:
    """Socket options by which a peer that vanished is noticed within 25 seconds.

    Keepalive does it on an idle connection. With data on the way only
    TCP_USER_TIMEOUT does (without it 75 s were not enough), but that also ends a
    connection whose peer lives and does not read. rpc-server does not read
    while it computes, so a head must not set it.
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
    """Seconds until `deadline`, a time.monotonic. Raises TimeoutError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _wait_for(sock: socket.socket, event: int, timeout: float) -> None:
    """Until `sock` is ready; unlike settimeout it concerns this thread alone. Raises TimeoutError."""
    poll = select.poll()
    poll.register(sock, event)
    if not poll.poll(timeout * 1000):
        raise TimeoutError


def _explain(error: ssl.SSLError) -> ChannelError:
    reason = (error.reason or str(error)).lower().replace("_", " ")
    return ChannelRefused(f"token refused: {reason}") if token_refused(error) else ChannelError(f"tls failed: {reason}")
