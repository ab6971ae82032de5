"""A client of a file server for coroutines: any number of calls at once over one connection.

Cancelling a call flushes it on the server. What is said is `calls`' and `client_session`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
from collections import deque
from collections.abc import AsyncIterator
from typing import TypeVar, cast

from llambo.core.address import TcpAddress, UnixAddress
from llambo.core.errors import LlamboError, TimedOut, Unreachable
from llambo.ninep import calls
from llambo.ninep import messages as m
from llambo.ninep.address import parse_address
from llambo.ninep.calls import Call, OpenFile
from llambo.ninep.client_session import Build, ClientSession
from llambo.ninep.errors import Malformed, error_from_text
from llambo.ninep.messages import MAX_MSIZE, RMessage, Stat, TMessage

T = TypeVar("T")


class AsyncFile:
    """An open file on a server. Closing it tells the server; the context manager of `AsyncClient.open` does."""

    def __init__(self, client: AsyncClient, file: OpenFile) -> None:
        self._client = client
        self._file = file

    @property
    def info(self) -> OpenFile:
        """Its fid, qid and offset."""
        return self._file

    async def read(self, count: int | None = None, offset: int | None = None) -> bytes:
        """One read: what is there, at most `count` bytes; b"" at the end. Without `offset`, where the last ended."""
        return await self._client.run(calls.read(self._file, count, offset))

    async def read_all(self) -> bytes:
        """Everything from here to the end."""
        return await self._client.run(calls.read_all(self._file))

    async def follow(self, ahead: int = 8) -> AsyncIterator[bytes]:
        """The pieces of a stream as they come, to its end, with up to `ahead` reads under way.

        For files that give the next piece whatever the offset: a read that waits on the server already saves a turn for
        each piece. Leaving before the end flushes the reads.
        """
        link, file = self._client.link, self._file
        reads: deque[tuple[TMessage, asyncio.Future[RMessage]]] = deque()
        is_whole = False
        try:
            while True:
                if len(reads) <= ahead // 2:  # several at once are one write to the socket
                    reads.extend(link.begin(calls.one_read(file)) for _ in range(ahead - len(reads)))
                answer = await reads[0][1]
                reads.popleft()
                assert isinstance(answer, m.Rread)
                if not answer.data:
                    is_whole = True
                    return
                yield answer.data
        finally:
            for message, waiter in reads:
                waiter.cancel()
                if not is_whole:  # else their ends are on the way
                    link.abandon(message, waiter)

    async def write(self, data: bytes | str) -> int:
        """Writes all of `data` where the last read or write ended; one message where it fits into one."""
        return await self._client.run(calls.write(self._file, to_bytes(data)))


class AsyncClient:
    """A connection to the tree that was attached to. An async context manager; `connect` makes it.

    Every call raises the `LlamboError` that the server's text stands for, and `Unreachable` when the connection is
    lost.
    """

    def __init__(self, link: _Link) -> None:
        self.link = link
        self._root = m.NOFID

    @classmethod
    async def connect(
        cls, address: str, *, uname: str = "", aname: str = "", msize: int = MAX_MSIZE, timeout_s: float = 10.0
    ) -> AsyncClient:
        """Connects to `unix!PATH` or `tcp!HOST!PORT` and attaches to `aname`, all within `timeout_s`.

        Raises: `Unreachable`, `TimedOut`, `BadConfig` for what is no address, and what the server refuses with.
        """
        link = _Link(ClientSession(msize))
        try:
            async with asyncio.timeout(timeout_s):
                await _dial(address, link)
                client = cls(link)
                await client.run(calls.negotiate(link.session))
                client._root = await client.run(calls.attach(link.session, uname or user_name(), aname))
                return client
        except TimeoutError:
            await link.close()
            raise TimedOut(f"{address} does not answer within {timeout_s:g} s") from None
        except BaseException:
            await link.close()
            raise

    @property
    def session(self) -> ClientSession:
        """The protocol's state: msize, and fids for calls of one's own."""
        return self.link.session

    @property
    def root(self) -> int:
        """The fid of the attached tree."""
        return self._root

    async def request(self, build: Build) -> RMessage:
        """Sends one request and waits for its answer, which is no Rerror; `build` makes it of its tag."""
        return await self.link.request(build)

    async def run(self, call: Call[T]) -> T:
        """Runs one of `calls`."""
        request = self.link.request
        try:
            build = next(call)
            while True:
                try:
                    answer = await request(build)
                except BaseException as error:
                    build = call.throw(error)
                else:
                    build = call.send(answer)
        except StopIteration as stop:
            return cast(T, stop.value)
        finally:
            self.link.send_soon()

    @contextlib.asynccontextmanager
    async def open(self, path: str, mode: str | int = "r") -> AsyncIterator[AsyncFile]:
        """The file at `path`, opened with "r", "w" (truncates), "a", "rw" or a mode's number."""
        file = await self.run(calls.open_file(self.session, self._root, path, calls.mode_of(mode)))
        try:
            yield AsyncFile(self, file)
        except BaseException:
            self.link.discard(file.fid)
            raise
        await self.run(calls.clunk(file))

    async def read_file(self, path: str) -> bytes:
        """The whole content of a file."""
        return await self.run(calls.read_file(self.session, self._root, path))

    async def write_file(self, path: str, data: bytes | str, mode: str | int = "w") -> int:
        """Writes to a file; returns once the server has taken all of it and closed the file."""
        call = calls.write_file(self.session, self._root, path, to_bytes(data), calls.mode_of(mode))
        return await self.run(call)

    async def stat(self, path: str) -> Stat:
        """The directory entry of a file."""
        return await self.run(calls.stat(self.session, self._root, path))

    async def ls(self, path: str = "/") -> list[Stat]:
        """The entries of a directory, in the server's order."""
        return await self.run(calls.list_directory(self.session, self._root, path))

    async def remove(self, path: str) -> None:
        """Removes a file."""
        await self.run(calls.remove(self.session, self._root, path))

    async def close(self) -> None:
        """Hangs up; calls under way end with `Unreachable`."""
        await self.link.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class _Link(asyncio.BufferedProtocol):
    """The socket: sends what the session has to send once a turn of the loop, and wakes who waits for an answer."""

    def __init__(self, session: ClientSession) -> None:
        self.session = session
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiters: dict[int, tuple[TMessage, asyncio.Future[RMessage]]] = {}
        self._is_sending = False
        self._fault: LlamboError | None = None
        self._gone = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(Unreachable("the file server hung up"))
        self._gone.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.session.room()

    def buffer_updated(self, nbytes: int) -> None:
        session = self.session
        session.received(nbytes)
        try:
            while (answer := session.next_answer()) is not None:
                message, waiter = self._waiters.pop(answer.tag)
                if waiter.done():  # cancelled just now
                    session.disown(message, answer)
                elif isinstance(answer, m.Rerror):
                    waiter.set_exception(error_from_text(answer.ename))
                else:
                    waiter.set_result(answer)
        except Malformed as error:
            self._fail(Unreachable(f"the server does not speak 9P2000: {error.message}"))
            assert self._transport is not None
            self._transport.abort()
        self.send_soon()

    async def request(self, build: Build) -> RMessage:
        message, waiter = self.begin(build)
        try:
            return await waiter
        except asyncio.CancelledError:
            self.abandon(message, waiter)
            raise

    def begin(self, build: Build) -> tuple[TMessage, asyncio.Future[RMessage]]:
        if self._fault is not None:
            raise type(self._fault)(self._fault.message)
        message = self.session.start(build)
        waiter: asyncio.Future[RMessage] = self._loop.create_future()
        self._waiters[message.tag] = message, waiter
        self.send_soon()
        return message, waiter

    def abandon(self, message: TMessage, waiter: asyncio.Future[RMessage]) -> None:
        if waiter.cancelled():
            if self._waiters.get(message.tag, (None, None))[1] is waiter:
                del self._waiters[message.tag]
                self.session.flush(message.tag)
        elif waiter.exception() is None:
            self.session.disown(message, waiter.result())
        self.send_soon()

    def discard(self, fid: int) -> None:
        if self._fault is None:
            self.session.discard(fid)
            self.send_soon()

    def send_soon(self) -> None:
        if not self._is_sending and self._transport is not None:
            self._is_sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_sending = False
        data = self.session.data_to_send()
        if data and self._fault is None:
            assert self._transport is not None
            self._transport.write(data)

    def _fail(self, fault: LlamboError) -> None:
        if self._fault is None:
            self._fault = fault
        for _, waiter in self._waiters.values():
            if not waiter.done():
                waiter.set_exception(type(self._fault)(self._fault.message))
        self._waiters.clear()

    async def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()  # nothing waits to be sent that hanging up does not do as well
            await self._gone


async def _dial(address: str, link: _Link) -> None:
    loop = asyncio.get_running_loop()
    try:
        match parse_address(address):
            case UnixAddress(path):
                await loop.create_unix_connection(lambda: link, path)
            case TcpAddress(host, port):
                await loop.create_connection(lambda: link, host, port)
    except OSError as error:
        raise Unreachable(f"nothing answers at {address}: {error.strerror or error}") from error


def user_name() -> str:
    """What a client calls itself unless told otherwise; servers do not believe it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "none"


def to_bytes(data: bytes | str) -> bytes:
    """Text as UTF-8."""
    return data.encode() if isinstance(data, str) else data
