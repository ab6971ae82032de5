"""A blocking socket that drives `client_connection.ClientConnection` for `client.Bridge`.

Owns the socket, deadlines and the sharing among threads: whoever waits reads for all, and hands the others their
answers. Knows the protocol's framing only through the connection, and nothing of what is asked.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import threading
import time
from collections import deque
from typing import Any

from llambo.bridge.binary import AnswerFrame
from llambo.bridge.client_calls import CONNECT_TIMEOUT_S
from llambo.bridge.client_connection import ClientConnection
from llambo.bridge.peer import check_peer
from llambo.core.address import Address, TcpAddress, UnixAddress
from llambo.core.errors import LlamboError, Refused, TimedOut, Unreachable, from_code

_RECEIVE_BYTES = 65536
_CANCEL_TIMEOUT_S = 1.0  # by which a call may outlast its own, when the bridge reads nothing


class BlockingLink:
    """An open connection to a bridge. After an error of the connection itself every call raises that error again."""

    def __init__(self, address: Address, token: str, timeout_s: float) -> None:
        """Connects and agrees on the protocol.

        Raises: `Unreachable`, `Refused`, `Overloaded`, `TimedOut`.
        """
        self.address = address
        self.failure: LlamboError | None = None
        self._connection = ClientConnection(token)
        self._inboxes: dict[int, deque[AnswerFrame]] = {}
        self._sending = threading.Lock()
        self._cancels: deque[int] = deque()  # keys of requests whose end the bridge has not been told of
        self._receiving = threading.Lock()
        deadline = time.monotonic() + timeout_s
        opening = self._connection.opening()
        self._socket = _open(address, min(timeout_s, CONNECT_TIMEOUT_S))
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(self._socket, select.POLLOUT)
        try:
            # A bridge that turns us away may have closed already; what it said can be read all the same.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._socket.sendall(opening)
            while not self._connection.is_open:
                self._receive(deadline)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Ends the connection; threads that wait on it are told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self.failure is None:
            self.failure = Unreachable(f"the connection to the bridge at {self.address} was closed here")
        self._socket.close()

    def request(self, op: str, fields: dict[str, Any], timeout_s: float) -> int:
        """Sends a request and returns its key, for `wait` and `forget`.

        Raises: `TimedOut`, `Unreachable`, `BadRequest`, `TooLarge`.
        """
        deadline = time.monotonic() + timeout_s
        if not self._sending.acquire(timeout=self._remaining(deadline)):
            raise timed_out(self.address)
        try:
            key, data = self._connection.request(op, fields)
            self._inboxes[key] = deque()
            try:
                self._send(data, deadline)
            except BaseException:
                del self._inboxes[key]
                raise
        finally:
            self._sending.release()
            self._flush_cancels()
        return key

    def wait(self, key: int, timeout_s: float) -> AnswerFrame:
        """The next answer to a request.

        Raises: `TimedOut`, `Unreachable`.
        """
        deadline = time.monotonic() + timeout_s
        inbox = self._inboxes[key]
        while not inbox:
            if not self._receiving.acquire(timeout=self._remaining(deadline)):
                raise timed_out(self.address)
            try:
                if not inbox:  # whoever read before us may have found our answer
                    self._receive(deadline)
            finally:
                self._receiving.release()
        return inbox.popleft()

    def forget(self, key: int, *, cancel: bool) -> None:
        """Drops what still comes for a request; `cancel` has the bridge end it."""
        self._inboxes.pop(key, None)
        if cancel and self.failure is None:
            self._cancels.append(key)
            self._flush_cancels()

    def _flush_cancels(self) -> None:
        """Tells the bridge of requests to end, or leaves that to whoever is sending.

        Never waits for the lock: a stream that the garbage collector closes gets here at any point of any thread, also
        of one that holds it. Whoever releases the lock calls this afterwards, so that no key is left.
        """
        while self._cancels and self._sending.acquire(blocking=False):
            try:
                self._send(self._connection.cancel(self._cancels[0]), time.monotonic() + _CANCEL_TIMEOUT_S)
                self._cancels.popleft()
            except LlamboError:
                return  # too slow a bridge, which the next request tells, or a failure, which every call tells
            finally:
                self._sending.release()

    def _receive(self, deadline: float) -> None:
        if self.failure is not None:
            raise self.failure
        if not self._readable.poll(self._remaining(deadline) * 1000):
            raise timed_out(self.address)
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from error
        if not data:
            raise self._gone("it closed the connection")
        try:
            frames = self._connection.receive_data(data)
        except LlamboError as error:
            raise self._fail(error) from None
        for frame in frames:
            if frame.id is None:
                raise self._fail(from_code(frame.code, frame.message))
            inbox = self._inboxes.get(frame.id) if isinstance(frame.id, int) else None
            if inbox is not None:
                inbox.append(frame)

    def _send(self, data: bytes, deadline: float) -> None:
        if self.failure is not None:
            raise self.failure
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest) :]
                except BlockingIOError:
                    self._writable.poll(self._remaining(deadline) * 1000)
        except OSError as error:
            raise self._gone(error.strerror or str(error)) from error
        except BaseException:
            if len(rest) < len(data):
                self._gone("a request was sent in part")  # nothing that follows it could be understood
            raise

    def _remaining(self, deadline: float) -> float:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise timed_out(self.address)
        return remaining

    def _gone(self, reason: str) -> LlamboError:
        return self._fail(Unreachable(f"the bridge at {self.address} is gone: {reason}"))

    def _fail(self, error: LlamboError) -> LlamboError:
        if self.failure is None:
            self.failure = error
            self._socket.close()
        return self.failure


def timed_out(address: Address, timeout_s: float | None = None) -> TimedOut:
    """No answer within the time of a call, where that is known."""
    within = "in time" if timeout_s is None else f"within {timeout_s:.4g} s"
    return TimedOut(f"the bridge at {address} did not answer {within}")


def unreachable(address: Address, error: OSError) -> LlamboError:
    """Why nothing answers at an address, and what to do about it."""
    where = address.path if isinstance(address, UnixAddress) else str(address)
    if error.errno in (errno.EACCES, errno.EPERM):
        return Refused(f"permission denied on {where}")
    reason = error.strerror or str(error)
    return Unreachable(f"no bridge answers at {where} ({reason}): start one with `llamboctl bridge start`")


def _open(address: Address, timeout_s: float) -> socket.socket:
    """A connected socket that never blocks."""
    try:
        if isinstance(address, TcpAddress):
            connected = socket.create_connection((address.host, address.port), timeout_s)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            connected = _open_unix(address.path, timeout_s)
    except OSError as error:
        raise unreachable(address, error) from error
    connected.setblocking(False)
    return connected


def _open_unix(path: str, timeout_s: float) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout_s)
        connected.connect(path)
        check_peer(connected, path)
    except BaseException:
        connected.close()
        raise
    return connected
