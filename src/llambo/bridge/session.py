"""One client of a bridge on an asyncio transport: the driver around `connection.ServerConnection`.

Owns order (text commands are answered one after the other, binary requests run side by side), back-pressure in both
directions, and what a client that goes away leaves behind: nothing. Knows nothing of what commands mean.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass
from typing import cast

from llambo.bridge.answers import Answer, Failed, Reply
from llambo.bridge.binary import RequestKey
from llambo.bridge.commands import PROTOCOL_VERSION, Auth, Cancel, Command, Hello, Quit
from llambo.bridge.connection import Received, Rejected, ServerConnection
from llambo.bridge.hangup import HangupWatch, has_hung_up
from llambo.bridge.requests import Cause, Request
from llambo.bridge.service import Service, unforeseen
from llambo.bridge.settings import BridgeSettings
from llambo.core.errors import BadRequest, LlamboError, NotFound, Overloaded, Refused
from llambo.core.tokens import TokenStore
from llambo.core.unread import unread_bytes

_log = logging.getLogger("llambo.bridge")


@dataclass(frozen=True, slots=True)
class House:
    """What all sessions of one bridge share. `sessions` are those that are connected."""

    service: Service
    settings: BridgeSettings
    hangups: HangupWatch
    sessions: set[Session]


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Something that is answered when everything before it was."""

    item: Command | Answer
    key: RequestKey | None
    size_bytes: int = 0


class Session(asyncio.Protocol):
    """One client. With `tokens` it has to authenticate first; without, it may do everything."""

    def __init__(self, house: House, tokens: TokenStore | None) -> None:
        self._house = house
        self._service = house.service
        self._settings = house.settings
        self._tokens = tokens
        self._connection = ServerConnection(house.settings, "admin" if tokens is None else None)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._running: dict[RequestKey | None, Request] = {}
        self._wrong_tokens = 0
        self._sent_bytes = 0
        self._is_reading = True
        self._has_ended = False  # the client will send no more
        self._is_closing = False
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._loop = asyncio.get_running_loop()
        self._auth_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self.gone = asyncio.Event()  # set once the connection is lost, whoever ended it

    # What asyncio tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        self._transport = cast(asyncio.Transport, transport)
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self._transport.set_write_buffer_limits(high=self._settings.write_buffer_bytes)
        full = len(self._house.sessions) >= self._settings.max_connections
        self._house.sessions.add(self)
        if full:
            limit = self._settings.max_connections
            self.send(Failed(Overloaded(f"{limit} clients are connected, which is the limit")), None)
            self._close()
        elif self._tokens is not None:
            self._auth_timer = self._loop.call_later(self._settings.auth_timeout_s, self._auth_timed_out)

    def data_received(self, data: bytes) -> None:
        """Bytes of the client."""
        self._connection.receive_data(data)
        self._advance()

    def eof_received(self) -> bool:
        """The client sends no more; True keeps the connection open for the answers."""
        if self._connection.is_binary or has_hung_up(self._descriptor):
            self._transport.abort()
            return False
        self._has_ended = True
        self._connection.receive_eof()
        self._advance()
        return not self._is_closing

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, whoever ended it."""
        self._is_closing = True
        self._house.sessions.discard(self)
        self._house.hangups.unwatch(self._descriptor, self._hang_up)
        for timer in (self._auth_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._waiting.clear()
        for request in self._running.values():
            request.cancel(Cause.HANG_UP)
        self._can_write.set()
        self.gone.set()

    def pause_writing(self) -> None:
        """The client does not read as fast as answers come."""
        self._can_write.clear()
        self._arm_write_timer()
        self._adjust_reading()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self._can_write.set()
        if self._write_timer is not None and not self._is_closing:
            self._write_timer.cancel()
            self._write_timer = None
        self._advance()

    # What requests need (`requests.Outlet`).

    @property
    def is_writable(self) -> bool:
        """Whether the client keeps up."""
        return self._can_write.is_set()

    async def writable(self) -> None:
        """Returns once the client has caught up or is gone."""
        await self._can_write.wait()

    def send(self, answer: Answer, key: RequestKey | None) -> None:
        """Sends an answer, in one write."""
        if not self._transport.is_closing():
            data = self._connection.encode(answer, key)
            self._sent_bytes += len(data)
            self._transport.write(data)

    def request_ended(self, request: Request) -> None:
        """Goes on with what waited for the request."""
        del self._running[request.key]
        self._advance()

    # What the server needs.

    def finish(self) -> None:
        """Answers what is still waiting (nothing may be running), then closes."""
        self._advance()
        self._close()

    def abort(self) -> None:
        """Drops the connection with all that is unsent."""
        self._transport.abort()

    # The rest is how.

    def _advance(self) -> None:
        """Takes and answers as much of what was received as order and bounds allow."""
        while not self._is_closing and self._takes_commands():
            if self._waiting and not self._running:
                waiting = self._waiting.popleft()
                self._waiting_bytes -= waiting.size_bytes
                self._answer(waiting)
            elif self._is_full():
                break
            elif (event := self._connection.next_event()) is not None:
                self._take(event)
            else:
                break
        if self._has_ended and not self._waiting and not self._running and self.is_writable:
            self._close()
        self._adjust_reading()

    def _takes_commands(self) -> bool:
        """Whether the client keeps up; in frames also while it does not, as long as answers fit into twice the buffer.

        Else a client that has stopped to read a stream could not cancel it: its streams wait, its commands need not.
        """
        if self.is_writable:
            return True
        unsent = self._transport.get_write_buffer_size()
        return self._connection.is_binary and unsent < 2 * self._settings.write_buffer_bytes

    def _is_full(self) -> bool:
        return (
            len(self._waiting) >= self._settings.max_queued_commands
            or self._waiting_bytes >= self._settings.max_queued_bytes
        )

    def _take(self, event: Received | Rejected) -> None:
        match event:
            case Rejected():
                waiting = _Waiting(Failed(event.error), event.key)
            case Received(Cancel() as cancel, key):
                # Never waits: what it is to end may be what it would wait for.
                waiting = _Waiting(self._cancel(cancel), key)
            case Received(command, key, size_bytes):
                waiting = _Waiting(command, key, size_bytes)
        if self._connection.is_binary:
            self._answer(waiting)
        else:
            self._waiting.append(waiting)
            self._waiting_bytes += waiting.size_bytes
        if isinstance(event, Rejected) and event.fatal:
            self._close()

    def _answer(self, waiting: _Waiting) -> None:
        try:
            answer = self._answer_now(waiting)
        except LlamboError as error:
            answer = Failed(error)
        except Exception:
            answer = Failed(unforeseen(cast(Command, waiting.item)))
        if answer is not None:
            self.send(answer, waiting.key)
        if isinstance(waiting.item, Hello) and isinstance(answer, Reply):
            self._connection.switch_to_binary()
        if self._wrong_tokens >= self._settings.max_auth_attempts:
            self._close()

    def _answer_now(self, waiting: _Waiting) -> Answer | None:
        """The answer where it needs no waiting; else the command runs on and None comes back."""
        match waiting.item:
            case Auth():
                return self._authenticate(waiting.item)
            case Hello():
                data = {"protocol": PROTOCOL_VERSION, "max_frame_bytes": self._settings.max_frame_bytes}
                return Reply("Binary protocol", data)
            case Quit():
                self._service.request_stop()
                return Reply("Goodbye")
            case Reply() | Failed():
                return waiting.item
        command = cast(Command, waiting.item)
        reply = self._service.answer_now(command)
        if reply is not None:
            return reply
        if waiting.key in self._running:
            raise BadRequest(f"a request with the id {waiting.key!r} is in flight already")
        if len(self._running) >= self._settings.max_requests:
            raise Overloaded(f"{self._settings.max_requests} requests of this connection are in flight")
        self._running[waiting.key] = self._service.start(command, waiting.key, self)
        return None

    def _cancel(self, cancel: Cancel) -> Answer:
        try:
            mine = self._running.get(cancel.target if self._connection.is_binary else None)
            if mine is not None and (self._connection.is_binary or (not cancel.target and mine.is_generation)):
                return self._service.cancel_request(mine)
            if not cancel.target or isinstance(cancel.target, int):
                raise NotFound("nothing that could be cancelled is in flight on this connection")
            return self._service.cancel(cancel.target)
        except LlamboError as error:
            return Failed(error)

    def _authenticate(self, auth: Auth) -> Answer:
        if self._tokens is None:
            self._connection.grant("admin")
            return Reply("No authentication is needed here")
        try:
            token = self._tokens.verify(auth.token)
        except LlamboError:
            self._connection.deny()
            raise
        if token is None:
            self._wrong_tokens += 1
            self._connection.deny()
            return Failed(Refused("the token is wrong, revoked or expired"))
        self._connection.grant(token.scope)
        if self._auth_timer is not None:
            self._auth_timer.cancel()
        return Reply("Authenticated", {"scope": token.scope})

    def _auth_timed_out(self) -> None:
        if not self._connection.is_authenticated:
            self.send(Failed(Refused("no token came in time")), None)
            self._close()

    def _adjust_reading(self) -> None:
        """Reads only while there is room; a client that nobody reads from is watched for hanging up."""
        wanted = (
            not (self._is_closing or self._has_ended or self._is_full() or self._connection.awaits_decision)
            and self._takes_commands()
        )
        if wanted == self._is_reading or self._transport.is_closing():
            return
        self._is_reading = wanted
        if wanted:
            self._house.hangups.unwatch(self._descriptor, self._hang_up)
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()
            self._house.hangups.watch(self._descriptor, self._hang_up)

    def _hang_up(self) -> None:
        self._transport.abort()

    def _close(self) -> None:
        """Closes once all that was sent has left, or the client has not read it in time."""
        if not self._is_closing:
            self._is_closing = True
            self._arm_write_timer()  # first: it asks the socket, which may be gone at once
            self._transport.close()

    def _arm_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
        timeout_s = self._settings.write_timeout_s
        self._write_timer = self._loop.call_later(timeout_s, self._check_progress, self._taken_bytes())

    def _taken_bytes(self) -> int:
        """How much of what was sent the client has read."""
        return self._sent_bytes - unread_bytes(self._transport)

    def _check_progress(self, taken_before: int) -> None:
        if self._taken_bytes() > taken_before:
            self._arm_write_timer()
            return
        _log.warning("a client has left its answers unread for %g s: dropped", self._settings.write_timeout_s)
        self._transport.abort()
