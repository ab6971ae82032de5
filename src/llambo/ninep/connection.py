"""One client of a file server: its socket on one side, the handlers of its files on the other.

1. Requests are performed in the order of their arrival. What a handler does at once is answered at once.
2. A handler that is a coroutine becomes a task, and no later request is looked at before it has run to its first wait.
   From there on it holds up nobody.
3. Cancelling that task is Tflush; clunk, a new session and hanging up cancel it the same way.
4. Who does not read answers is not read from; who does not for long is hung up on.

Protocol state is `session`'s business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass, field
from typing import Any, cast

from llambo.core.errors import LlamboError
from llambo.ninep import messages as m
from llambo.ninep.errors import IO_ERROR, UNKNOWN_FID, FileError, Malformed
from llambo.ninep.requests import Cancel, Event, Fid, Limits, Release, Request
from llambo.ninep.session import ServerSession
from llambo.ninep.tree import AttachCallback, Handle, Peer, Result, walk

_JOIN_BYTES = 64 << 10  # below it one copy is cheaper than a list of pieces
_FLUSH_TIMEOUT_S = 2.0  # for clients to take their last answers, once the server is to close

_log = logging.getLogger("llambo.ninep")


@dataclass(slots=True)
class House:
    """What the connections of one server share. `closings` are the closes of files that take their time."""

    attach: AttachCallback
    limits: Limits
    max_connections: int
    hello_timeout_s: float
    write_timeout_s: float
    write_buffer_bytes: int
    connections: set[Connection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    is_closed: bool = False

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs `coroutine` in a task that `close` waits for."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def close(self) -> None:
        """Hangs up on everybody once they have taken the answers that were made; returns when all has ended."""
        self.is_closed = True  # a client accepted just now may still come in
        for connection in tuple(self.connections):
            connection.hang_up()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                await self._all_end()
        for connection in tuple(self.connections):
            connection.abort()
        await self._all_end()

    async def _all_end(self) -> None:
        while self.connections or self.tasks:
            gone = [connection.gone for connection in self.connections]
            await asyncio.wait([*gone, *self.tasks])


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._session = ServerSession(house.limits)
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._peer = Peer("")
        self._timer: asyncio.TimerHandle | None = None
        self._is_pumping = False
        self._is_starting = False  # a task is to run to its first wait
        self._is_full = False  # the client leaves its answers unread
        self._is_deaf = False  # and goes on asking all the same: it is not read from
        self._is_greeted = False
        self._is_over = False  # nothing that arrives counts any more

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._house.connections.add(self)
        if self._house.is_closed:
            self._transport.abort()
            return
        if len(self._house.connections) > self._house.max_connections:
            _log.warning("a client was turned away: %d are connected", self._house.max_connections)
            self._transport.abort()
            return
        self._peer = _peer_of(self._transport)
        self._transport.set_write_buffer_limits(self._house.write_buffer_bytes)
        self._set_timer(self._house.hello_timeout_s, "says no version")

    def data_received(self, data: bytes) -> None:
        """Bytes arrived."""
        if self._is_over:
            return
        self._session.receive_data(data)
        self._pump()
        if self._session.input_bytes > self._house.write_buffer_bytes and self._is_full and not self._is_deaf:
            self._is_deaf = True
            assert self._transport is not None
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        """Answers are waiting to be read: no more are made."""
        self._is_full = True
        self._set_timer(self._house.write_timeout_s, "does not read its answers")

    def resume_writing(self) -> None:
        """The client has read."""
        self._is_full = False
        if not self._is_over:
            self._set_timer(None)
            if self._is_deaf:
                self._is_deaf = False
                assert self._transport is not None
                self._transport.resume_reading()
            self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, by its will or ours: everything of it is cancelled and closed."""
        self._set_timer(None)
        self._end()
        self._house.connections.discard(self)
        self.gone.set_result(None)

    def hang_up(self) -> None:
        """Hangs up once the client has taken what it was answered; what is under way is cancelled at once."""
        assert self._transport is not None
        self._transport.close()
        self._end()

    def abort(self) -> None:
        """Hangs up now."""
        assert self._transport is not None
        self._transport.abort()

    # Events of the session

    def _pump(self) -> None:
        """Performs what can be performed now, and sends the answers together."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while self._is_over or not (self._is_full or self._is_starting):
                event = self._session.next_event()
                if event is None:
                    break
                self._handle(event)
                if self._session.output_bytes >= self._house.write_buffer_bytes:
                    self._send()
        except Malformed as error:
            _log.info("client %s is hung up on: %s", self._peer.address, error.message)
            self._send()
            assert self._transport is not None
            self._transport.close()
            self._loop.call_soon(self._end)
        finally:
            self._is_pumping = False
        self._send()
        if not self._is_greeted and self._session.msize:
            self._is_greeted = True
            if not self._is_full:
                self._set_timer(None)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._session.hang_up()
            self._pump()

    def _send(self) -> None:
        size = self._session.output_bytes
        pieces = self._session.data_to_send()
        if not pieces or self._is_over:
            return
        assert self._transport is not None
        if size < _JOIN_BYTES:
            self._transport.write(b"".join(pieces))
        else:
            self._transport.writelines(pieces)

    def _handle(self, event: Event) -> None:
        match event:
            case Request():
                self._perform(event)
            case Cancel(request):
                # One that has not started finds out when it does: a task cancelled before never runs at all.
                if request.task is not None and request.has_started:
                    request.task.cancel()
            case Release(handle):
                self._house.start(_release(handle))

    def _perform(self, request: Request) -> None:
        if request.is_cancelled:
            self._session.drop(request)
            return
        try:
            result = self._call(request)
            if isinstance(result, Awaitable):
                request.task = self._house.start(self._wait(request, result))
                self._is_starting = True
                self._loop.call_soon(self._go_on)  # after the task's first step
            else:
                self._conclude(request, result)
        except Exception as error:
            self._fail(request, error)

    def _go_on(self) -> None:
        self._is_starting = False
        self._pump()

    async def _wait(self, request: Request, result: Awaitable[Any]) -> None:
        request.has_started = True
        if request.is_cancelled:
            if isinstance(result, Coroutine):
                result.close()
            self._session.drop(request)
        else:
            try:
                self._conclude(request, await result)
            except asyncio.CancelledError:
                self._session.drop(request)
            except Exception as error:
                self._fail(request, error)
        self._pump()

    def _call(self, request: Request) -> Result[Any]:
        fid = request.fid
        match request.message:
            case m.Tread() as message:
                assert fid.handle is not None
                return fid.handle.read(message.offset, self._session.read_count(message))
            case m.Twrite(_, _, offset, data):
                assert fid.handle is not None
                return fid.handle.write(offset, data)
            case m.Twalk(names=names):
                return walk(request.trail, names)
            case m.Topen(mode=mode):
                return fid.node.open(mode)
            case m.Tclunk():
                return fid.handle.close() if fid.handle is not None else None
            case m.Tstat():
                return fid.node.stat()
            case m.Tattach(uname=uname, aname=aname):
                return self._house.attach(uname, aname, self._peer)
            case m.Tremove():
                return _remove(fid)
        raise AssertionError(f"the session let {request.message} out")

    def _conclude(self, request: Request, value: Any) -> None:
        session = self._session
        match request.message:
            case m.Tread() as message:
                if len(value) > session.read_count(message):
                    self._fail(request, ValueError(f"{len(value)} bytes were read instead of {message.count}"))
                else:
                    session.read(request, value)
            case m.Twrite(tag, data=data):
                session.answer(request, m.Rwrite(tag, len(data) if value is None else value))
            case m.Twalk():
                if value.error is not None and not isinstance(value.error, LlamboError):
                    _log_fault(request, value.error)
                session.walked(request, value)
            case m.Topen():
                session.opened(request, value)
            case m.Tclunk(tag):
                session.answer(request, m.Rclunk(tag))
            case m.Tstat(tag):
                session.answer(request, m.Rstat(tag, value))
            case m.Tattach():
                session.attached(request, value)
            case m.Tremove(tag):
                session.answer(request, m.Rremove(tag))

    def _fail(self, request: Request, error: Exception) -> None:
        if not isinstance(error, LlamboError):
            _log_fault(request, error)
            error = FileError(f"{IO_ERROR}: a fault of the server, which its log tells")
        if isinstance(request.message, m.Tclunk):  # a clunk cannot fail
            self._session.answer(request, m.Rclunk(request.message.tag))
        else:
            self._session.fail(request, error)

    def _set_timer(self, delay_s: float | None, reason: str = "") -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if delay_s is None else self._loop.call_later(delay_s, self._give_up, reason)

    def _give_up(self, reason: str) -> None:
        _log.info("client %s is hung up on: it %s", self._peer.address, reason)
        self.abort()


async def _remove(fid: Fid) -> None:
    """Closes the file, then removes it; what its close says is not asked."""
    if fid.handle is not None:
        await _release(fid.handle)
    if not fid.trail:
        raise FileError(UNKNOWN_FID)
    removing = fid.node.remove()
    if isinstance(removing, Awaitable):
        await removing


async def _release(handle: Handle) -> None:
    try:
        closing = handle.close()
        if isinstance(closing, Awaitable):
            await closing
    except Exception:
        _log.exception("closing a file failed")


def _log_fault(request: Request, error: Exception) -> None:
    _log.error("%s failed", type(request.message).__name__, exc_info=error)


def _peer_of(transport: asyncio.Transport) -> Peer:
    connected = transport.get_extra_info("socket")
    if connected.family != socket.AF_UNIX:
        host, port = transport.get_extra_info("peername")[:2]
        return Peer(f"tcp!{host}!{port}")
    if sys.platform != "linux":
        return Peer("unix")
    pid, uid, gid = struct.unpack("iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(f"unix (process {pid})", uid, gid, pid)
