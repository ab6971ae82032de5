"""A client of a file server for threads and scripts: one call at a time, each with a time limit.

What is said is `calls`' and `client_session`'s business. A client belongs to one thread.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import TypeVar, cast

from llambo.core.address import TcpAddress, UnixAddress
from llambo.core.errors import TimedOut, Unreachable
from llambo.ninep import calls
from llambo.ninep import messages as m
from llambo.ninep.address import parse_address
from llambo.ninep.calls import Call, OpenFile
from llambo.ninep.client import to_bytes, user_name
from llambo.ninep.client_session import Build, ClientSession
from llambo.ninep.errors import Malformed, error_from_text
from llambo.ninep.messages import MAX_MSIZE, RMessage, Stat

T = TypeVar("T")


class File:
    """An open file on a server; the context manager of `Client.open` closes it."""

    def __init__(self, client: Client, file: OpenFile) -> None:
        self._client = client
        self._file = file

    @property
    def info(self) -> OpenFile:
        """Its fid, qid and offset."""
        return self._file

    def read(self, count: int | None = None, offset: int | None = None) -> bytes:
        """One read: what is there, at most `count` bytes; b"" at the end. Without `offset`, where the last ended."""
        return self._client.run(calls.read(self._file, count, offset))

    def read_all(self) -> bytes:
        """Everything from here to the end."""
        return self._client.run(calls.read_all(self._file))

    def write(self, data: bytes | str) -> int:
        """Writes all of `data` where the last read or write ended; one message where it fits into one."""
        return self._client.run(calls.write(self._file, to_bytes(data)))

    def __iter__(self) -> Iterator[bytes]:
        """The pieces of the file as they come, to its end."""
        while piece := self.read():
            yield piece


class Client:
    """A connection to the tree that was attached to. A context manager; `connect` makes it.

    `timeout_s` bounds the wait for each answer, None waits for ever; it may be set anew. Every call raises the
    `LlamboError` that the server's text stands for, `TimedOut`, and `Unreachable` when the connection is lost. A call
    that times out or is interrupted is flushed on the server, and the client can be used on.
    """

    def __init__(self, connected: socket.socket, session: ClientSession, timeout_s: float | None) -> None:
        self.timeout_s = timeout_s
        self._socket = connected
        self._session = session
        self._root = m.NOFID

    @classmethod
    def connect(
        cls, address: str, *, uname: str = "", aname: str = "", msize: int = MAX_MSIZE, timeout_s: float | None = 30.0
    ) -> Client:
        """Connects to `unix!PATH` or `tcp!HOST!PORT` and attaches to `aname`.

        Raises: `Unreachable`, `TimedOut`, `BadConfig` for what is no address, and what the server refuses with.
        """
        session = ClientSession(msize)
        client = cls(_dial(address, timeout_s), session, timeout_s)
        try:
            client.run(calls.negotiate(session))
            client._root = client.run(calls.attach(session, uname or user_name(), aname))
        except BaseException:
            client.close()
            raise
        return client

    def run(self, call: Call[T]) -> T:
        """Runs one of `calls`."""
        try:
            build = next(call)
            while True:
                try:
                    answer = self.request(build)
                except BaseException as error:
                    build = call.throw(error)
                else:
                    build = call.send(answer)
        except StopIteration as stop:
            return cast(T, stop.value)
        finally:
            with contextlib.suppress(OSError):  # fids given back; when the server is gone they are
                self._send()

    def request(self, build: Build) -> RMessage:
        """Sends one request and waits for its answer, which is no Rerror; `build` makes it of its tag."""
        tag = self._session.start(build).tag
        try:
            self._send()
            answer = self._receive()
        except TimeoutError:
            self._session.flush(tag)
            raise TimedOut(f"the file server does not answer within {self.timeout_s:g} s") from None
        except OSError as error:
            raise Unreachable(f"the file server hung up: {error.strerror or error}") from error
        except Malformed as error:
            raise Unreachable(f"the server does not speak 9P2000: {error.message}") from error
        except BaseException:
            self._session.flush(tag)
            raise
        if isinstance(answer, m.Rerror):
            raise error_from_text(answer.ename)
        return answer

    def _send(self) -> None:
        data = self._session.data_to_send()
        if not data:
            return
        try:
            self._socket.settimeout(self.timeout_s)
            self._socket.sendall(data)
        except TimeoutError:
            self.close()
            raise Unreachable(
                f"the file server reads nothing for {self.timeout_s:g} s: the connection is closed"
            ) from None
        except BaseException:
            self.close()  # part of a message may be on its way: nothing can follow it
            raise

    def _receive(self) -> RMessage:
        deadline = None if self.timeout_s is None else time.monotonic() + self.timeout_s
        while (answer := self._session.next_answer()) is None:
            # Answers to nobody may come meanwhile; they do not make the wait longer.
            self._socket.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
            with self._session.room() as room:
                count = self._socket.recv_into(room)
            if not count:
                raise Unreachable("the file server hung up")
            self._session.received(count)
        return answer

    @contextlib.contextmanager
    def open(self, path: str, mode: str | int = "r") -> Iterator[File]:
        """The file at `path`, opened with "r", "w" (truncates), "a", "rw" or a mode's number."""
        file = self.run(calls.open_file(self._session, self._root, path, calls.mode_of(mode)))
        try:
            yield File(self, file)
        except BaseException:
            self._session.discard(file.fid)
            with contextlib.suppress(OSError):
                self._send()
            raise
        self.run(calls.clunk(file))

    def read_file(self, path: str) -> bytes:
        """The whole content of a file."""
        return self.run(calls.read_file(self._session, self._root, path))

    def write_file(self, path: str, data: bytes | str, mode: str | int = "w") -> int:
        """Writes to a file; returns once the server has taken all of it and closed the file."""
        return self.run(calls.write_file(self._session, self._root, path, to_bytes(data), calls.mode_of(mode)))

    def stat(self, path: str) -> Stat:
        """The directory entry of a file."""
        return self.run(calls.stat(self._session, self._root, path))

    def ls(self, path: str = "/") -> list[Stat]:
        """The entries of a directory, in the server's order."""
        return self.run(calls.list_directory(self._session, self._root, path))

    def remove(self, path: str) -> None:
        """Removes a file."""
        self.run(calls.remove(self._session, self._root, path))

    def close(self) -> None:
        """Hangs up."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _dial(address: str, timeout_s: float | None) -> socket.socket:
    try:
        match parse_address(address):
            case UnixAddress(path):
                return _dial_unix(path, timeout_s)
            case TcpAddress(host, port):
                connected = socket.create_connection((host, port), timeout_s)
                connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return connected
    except TimeoutError:
        raise TimedOut(f"{address} does not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise Unreachable(f"nothing answers at {address}: {error.strerror or error}") from error


def _dial_unix(path: str, timeout_s: float | None) -> socket.socket:
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connected.settimeout(timeout_s)
        connected.connect(path)
    except BaseException:
        connected.close()
        raise
    return connected
