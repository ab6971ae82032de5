"""Many requests over one WebSocket (`/v1/ws`), and the cluster's events as they happen (`/ws/events`).

Owns what is in flight on a connection: its bounds, its ends, and that nothing of it outlives the client. What messages
look like is `messages`' business, which node answers the cluster's; `guard` has checked who asks before.

A token waits until the client has room for it, and with it the answer that it belongs to: a slow reader slows its own
answers alone. Messages are read on meanwhile, so that such an answer can still be cancelled.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from llambo.cluster.control import Control
from llambo.cluster.door import Door
from llambo.core.errors import BadRequest, LlamboError, Overloaded
from llambo.core.fusion import VoteCast
from llambo.core.types import Done
from llambo.gateway import messages
from llambo.gateway.errors import Stopping

if TYPE_CHECKING:
    from llambo.gateway.app import Gateway

MAX_REQUESTS = 256
"""Answers in flight on one connection."""
MAX_REPLIES = 64
"""Refusals and pongs that wait for room on one connection; its messages are not read while there are more."""
MAX_REQUEST_BYTES = 8 * 2**20
"""What their messages may take together."""

GOING_AWAY = 1001
_POLICY = 1008
_MAY_INFER = frozenset({"infer", "admin"})
_MAY_LOOK = _MAY_INFER | {"read"}

_log = logging.getLogger("llambo.gateway")


def websocket_routes(gateway: Gateway) -> list[BaseRoute]:
    """`/v1/ws` and `/ws/events`. `scope["state"]["scope"]` says what the client may; without it nothing."""

    async def infer(websocket: WebSocket) -> None:
        if await _admitted(websocket, _MAY_INFER):
            await websocket.accept()
            state = websocket.scope["state"]
            await Talk(gateway.door, websocket, state.get("again"), state.get("stopping")).run()

    async def events(websocket: WebSocket) -> None:
        if await _admitted(websocket, _MAY_LOOK):
            await _tell_events(gateway.control, websocket)

    return [WebSocketRoute("/v1/ws", infer, name="ws"), WebSocketRoute("/ws/events", events, name="events")]


async def _admitted(websocket: WebSocket, scopes: frozenset[str]) -> bool:
    """Whether the client may; else it is refused before the handshake, which is HTTP's 403."""
    if websocket.scope.get("state", {}).get("scope") in scopes:
        return True
    await websocket.close(_POLICY)
    return False


@dataclass(slots=True, eq=False)
class _Answer:
    """An infer in flight. `is_ending`: all but its last message was said; nothing can cancel it any more."""

    asked: messages.Infer
    task: asyncio.Task[None] | None = None
    is_cancelled: bool = False
    has_begun: bool = False
    is_ending: bool = False
    tokens: int = 0
    began_at: float = field(default_factory=time.perf_counter)
    first_at: float | None = None

    def cancel(self) -> None:
        """Ends it early, with a last message."""
        self.is_cancelled = True
        # A task that is cancelled before its first step runs nothing at all, so it could not say that it ended.
        if self.task is not None and self.has_begun and not self.is_ending:
            self.task.cancel()

    def cancelled(self) -> str:
        """What is said of it then."""
        first_ms = None if self.first_at is None else (self.first_at - self.began_at) * 1e3
        time_ms = (time.perf_counter() - self.began_at) * 1e3
        return messages.cancelled(self.asked.id, tokens=self.tokens, ttft_ms=first_ms, time_ms=time_ms)


class Talk:
    """One client of `/v1/ws`, whose handshake is done. Once `stopping` is set nothing new begins.

    `again` says whether the client may still ask, and counts what it asks; it is called for each infer.
    """

    def __init__(
        self,
        door: Door,
        websocket: WebSocket,
        again: Callable[[], LlamboError | None] | None = None,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self._door = door
        self._websocket = websocket
        self._again = again or (lambda: None)
        self._stopping = stopping or asyncio.Event()
        self._answers: dict[messages.Id, _Answer] = {}
        self._size_bytes = 0
        self._replies: asyncio.Queue[str] = asyncio.Queue(MAX_REPLIES)
        self._is_over = False

    async def run(self) -> None:
        """Answers until the client is gone; then nothing of it is left."""
        beside = [asyncio.create_task(self._say_goodbye()), asyncio.create_task(self._reply())]
        try:
            async for text in _received(self._websocket):
                if (reply := self._taken(text)) is not None:
                    await self._replies.put(reply)
        finally:
            for task in beside:
                task.cancel()
            await self._drop_all()

    def _taken(self, text: str | None) -> str | None:
        """Does what a message says, and returns what is to be said at once."""
        match messages.read(text) if text is not None else _NO_TEXT:
            case messages.Infer() as asked:
                return self._begin(asked)
            case messages.Cancel(key):
                if (answer := self._answers.get(key)) is not None:  # else it has just ended: that was said
                    answer.cancel()
                return None
            case messages.Ping():
                return messages.PONG
            case messages.Bad(key, error):
                # An error with an id ends that infer, which must not be the one that runs under it.
                return messages.error(None if key in self._answers else key, error)

    async def _reply(self) -> None:
        """Sends what is said at once. It waits for room as answers do, and messages are read on meanwhile."""
        while True:
            reply = await self._replies.get()
            with suppress(WebSocketDisconnect):  # `run` hears of it, once it is not kept from reading
                await _say(self._websocket, reply)

    def _begin(self, asked: messages.Infer) -> str | None:
        """Starts an answer, or says why not."""
        if asked.id in self._answers:
            return messages.error(None, BadRequest(f"an infer with the id {asked.id!r} is in flight already"))
        if self._stopping.is_set():
            return messages.error(asked.id, Stopping("the cluster is being stopped"))
        if (refusal := self._again()) is not None:
            return messages.error(asked.id, refusal)
        if len(self._answers) >= MAX_REQUESTS:
            return messages.error(asked.id, Overloaded(f"{MAX_REQUESTS} requests of this connection are in flight"))
        if self._size_bytes + asked.size_bytes > MAX_REQUEST_BYTES:
            most = f"the requests of this connection in flight take more than {MAX_REQUEST_BYTES} bytes"
            return messages.error(asked.id, Overloaded(most))
        answer = self._answers[asked.id] = _Answer(asked)
        self._size_bytes += asked.size_bytes
        answer.task = asyncio.create_task(self._answer(answer))
        return None

    async def _answer(self, answer: _Answer) -> None:
        answer.has_begun = True
        try:
            last = answer.cancelled() if answer.is_cancelled else await self._stream(answer)
        except asyncio.CancelledError:
            if self._is_over or not answer.is_cancelled:
                raise
            last = answer.cancelled()
        except LlamboError as error:
            last = messages.error(answer.asked.id, error)
        except WebSocketDisconnect:
            return  # `run` hears of it too
        except Exception:
            _log.exception("a request over a WebSocket failed")
            last = messages.error(answer.asked.id, LlamboError("the gateway failed; its log says how"))
        answer.is_ending = True
        try:
            await _say(self._websocket, last)
        except WebSocketDisconnect:
            return
        # After the message, so that the id is not in flight twice for the client.
        del self._answers[answer.asked.id]
        self._size_bytes -= answer.asked.size_bytes

    async def _stream(self, answer: _Answer) -> str:
        """Sends votes and tokens; returns the last message. Raises: see `Door.generate`, `WebSocketDisconnect`."""
        key, request = answer.asked.id, answer.asked.request
        async with aclosing(self._door.generate(request)) as events:
            async for event in events:
                if isinstance(event, Done):
                    return messages.done(key, event)
                if isinstance(event, VoteCast):
                    await _say(self._websocket, messages.vote(key, event))
                    continue
                if answer.first_at is None:
                    answer.first_at = time.perf_counter()
                answer.tokens += len(event.ids) or 1
                await _say(self._websocket, messages.token(key, event, logprobs=request.logprobs))
        raise LlamboError("the answer broke off")

    async def _say_goodbye(self) -> None:
        """Closes at a stop, as soon as nothing is in flight: the daemon waits for it."""
        await self._stopping.wait()
        while tasks := [answer.task for answer in self._answers.values() if answer.task is not None]:
            await asyncio.wait(tasks)
        with suppress(WebSocketDisconnect):
            await self._websocket.close(GOING_AWAY)

    async def _drop_all(self) -> None:
        """Ends what is in flight; nobody is told."""
        self._is_over = True
        tasks = [answer.task for answer in self._answers.values() if answer.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


_NO_TEXT = messages.Bad(None, BadRequest("messages must be text, each one JSON object; this one was binary"))


async def _say(websocket: WebSocket, text: str) -> None:
    """Returns once the client has room for more. Raises: `WebSocketDisconnect`, also where this side has closed."""
    if websocket.application_state is not WebSocketState.CONNECTED:
        raise WebSocketDisconnect(GOING_AWAY)
    await websocket.send_text(text)


async def _received(websocket: WebSocket) -> AsyncIterator[str | None]:
    """Messages until the client is gone; None for a binary one."""
    while (message := await websocket.receive())["type"] == "websocket.receive":
        yield message.get("text")
        # Thousands of small messages come in one piece, and taking them waits for nothing: others must have their turn.
        await asyncio.sleep(0)


async def _tell_events(control: Control, websocket: WebSocket) -> None:
    """Sends every event from the handshake on. What the client says is not heard."""
    async with _listening(control, websocket) as is_open:
        await websocket.accept()
        is_open.set()
        async for _ in _received(websocket):
            pass


@asynccontextmanager
async def _listening(control: Control, websocket: WebSocket) -> AsyncIterator[asyncio.Event]:
    """Inside, events are kept for the client, and sent once the yielded event is set.

    A client too slow loses some, and is told how many: `Control.events` sees to it.
    """
    is_open = asyncio.Event()
    again = websocket.scope["state"].get("again")

    async def tell() -> None:
        async with aclosing(control.events()) as events:
            async for event in events:
                await is_open.wait()
                if again is not None and again(counts=False) is not None:
                    await websocket.close(_POLICY)
                    return
                await _say(websocket, messages.happened(event))
        await is_open.wait()
        await websocket.close(GOING_AWAY)

    task = asyncio.create_task(tell())
    # `Control.events` subscribes with its first step, which the task takes in its first turn: none may be missed that
    # happens from now on.
    await asyncio.sleep(0)
    try:
        yield is_open
    finally:
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, Exception) and not isinstance(outcome, WebSocketDisconnect):
            _log.error("telling a client of events failed", exc_info=outcome)
