"""An asyncio transport that drives `client_connection.ClientConnection` for `async_client.AsyncBridge`.

Answers go to the request that they belong to as they arrive: no reader task is needed, and a slow reader of one stream
holds up no other request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, cast

from llambo.bridge.binary import AnswerFrame
from llambo.bridge.blocking_link import timed_out, unreachable
from llambo.bridge.client_connection import ClientConnection
from llambo.bridge.peer import check_peer
from llambo.core.address import Address, TcpAddress, UnixAddress
from llambo.core.errors import LlamboError, Overloaded, Unreachable, from_code

MAX_WAITING_ANSWERS = 65536  # of one request; beyond it that request, and no other, is ended


class _Inbox:
    """The answers to one request that nobody has taken yet, and whoever waits for them."""

    __slots__ = ("_error", "_frames", "_waiter")

    def __init__(self) -> None:
        self._frames: deque[AnswerFrame] = deque()
        self._error: LlamboError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def put(self, frame: AnswerFrame) -> bool:
        """Takes an answer, or drops it after `fail`; False when too many wait."""
        if self._error is not None:
            return True
        if len(self._frames) >= MAX_WAITING_ANSWERS:
            return False
        self._frames.append(frame)
        self._wake()
        return True

    def fail(self, error: LlamboError) -> None:
        """No answer comes any more; those that are here can still be taken."""
        self._error = error
        self._wake()

    @property
    def has_answer(self) -> bool:
        """Whether `get` returns at once."""
        return bool(self._frames)

    async def get(self) -> AnswerFrame:
        """The next answer."""
        while not self._frames:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._frames.popleft()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class AsyncLink(asyncio.Protocol):
    """An open connection to a bridge on a loop; its calls are those of `blocking_link.BlockingLink`."""

    def __init__(self, address: Address, token: str) -> None:
        self.address = address
        self.failure: LlamboError | None = None
        self._connection = ClientConnection(token)
        self._inboxes: dict[int, _Inbox] = {}
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._closed = asyncio.Event()
        self._can_write = asyncio.Event()
        self._can_write.set()

    @classmethod
    async def open(cls, address: Address, token: str, timeout_s: float) -> AsyncLink:
        """Connects and agrees on the protocol.

        Raises: `Unreachable`, `Refused`, `Overloaded`, `TimedOut`.
        """
        loop = asyncio.get_running_loop()
        link: AsyncLink | None = None
        try:
            async with asyncio.timeout(timeout_s):
                if isinstance(address, TcpAddress):
                    _, link = await loop.create_connection(lambda: cls(address, token), address.host, address.port)
                else:
                    _, link = await loop.create_unix_connection(lambda: cls(address, token), address.path)
                await link._opened
        except TimeoutError:
            if link is not None:
                link.abort()
            raise timed_out(address, timeout_s) from None
        except OSError as error:
            raise unreachable(address, error) from error
        except BaseException:
            if link is not None:
                link.abort()
            raise
        return link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The bridge is there."""
        self._transport = cast(asyncio.Transport, transport)
        try:
            if isinstance(self.address, UnixAddress):
                check_peer(transport.get_extra_info("socket"), self.address.path)
            self._transport.write(self._connection.opening())
        except LlamboError as error:
            self._fail(error)
        except OSError as error:
            self._fail(unreachable(self.address, error))

    def data_received(self, data: bytes) -> None:
        """Bytes of the bridge."""
        try:
            frames = self._connection.receive_data(data)
        except LlamboError as error:
            self._fail(error)
            return
        if self._connection.is_open and not self._opened.done():
            self._opened.set_result(None)
        for frame in frames:
            self._dispatch(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """The bridge is gone, or the connection was closed here."""
        reason = str(exc) if exc else "it closed the connection"
        self._fail(Unreachable(f"the bridge at {self.address} is gone: {reason}"))
        self._can_write.set()
        self._closed.set()

    def pause_writing(self) -> None:
        """The bridge does not read as fast as requests come."""
        self._can_write.clear()

    def resume_writing(self) -> None:
        """The bridge has caught up."""
        self._can_write.set()

    async def close(self) -> None:
        """Ends the connection; requests that wait on it are told."""
        self._fail(Unreachable(f"the connection to the bridge at {self.address} was closed here"))
        await self._closed.wait()

    def abort(self) -> None:
        """Ends the connection without waiting."""
        self._transport.abort()

    async def request(self, op: str, fields: dict[str, Any], timeout_s: float) -> int:
        """Sends a request, once the bridge takes more, and returns its key.

        Raises: `TimedOut`, `Unreachable`, `BadRequest`, `TooLarge`.
        """
        if not self._can_write.is_set():
            try:
                async with asyncio.timeout(timeout_s):
                    await self._can_write.wait()
            except TimeoutError:
                raise timed_out(self.address, timeout_s) from None
        if self.failure is not None:
            raise self.failure
        key, data = self._connection.request(op, fields)
        self._inboxes[key] = _Inbox()
        self._transport.write(data)
        return key

    async def wait(self, key: int, timeout_s: float) -> AnswerFrame:
        """The next answer to a request.

        Raises: `TimedOut`, `Unreachable`.
        """
        inbox = self._inboxes[key]
        if inbox.has_answer:
            return await inbox.get()  # does not wait, so it needs no timer
        try:
            async with asyncio.timeout(timeout_s):
                return await inbox.get()
        except TimeoutError:
            raise timed_out(self.address, timeout_s) from None

    def forget(self, key: int, *, cancel: bool) -> None:
        """Drops what still comes for a request; `cancel` has the bridge end it."""
        self._inboxes.pop(key, None)
        if cancel and self.failure is None:
            self._transport.write(self._connection.cancel(key))

    def _dispatch(self, frame: AnswerFrame) -> None:
        if frame.id is None:
            self._fail(from_code(frame.code, frame.message))
            return
        key = frame.id if isinstance(frame.id, int) else 0
        inbox = self._inboxes.get(key)
        if inbox is not None and not inbox.put(frame):
            self._transport.write(self._connection.cancel(key))
            inbox.fail(Overloaded(f"the reader of an answer is {MAX_WAITING_ANSWERS} tokens behind"))

    def _fail(self, error: LlamboError) -> None:
        if self.failure is not None:
            return
        self.failure = error
        if not self._opened.done():
            self._opened.set_exception(error)
        for inbox in self._inboxes.values():
            inbox.fail(error)
        self._transport.abort()
