"""One request to a node and its reply: a piece that a node gives is written to the client as it comes.

Owns the client's connection: notices when it is gone, gives signs of life while the node is silent, and sees to it that
a reply has exactly one end. What is asked of whom, `inference` has found out before.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import msgspec
from starlette.types import Receive, Scope, Send

from llambo.cluster.relay import RelayReply, RelayRequest, Relays
from llambo.core.errors import Cancelled, Diverged, LlamboError
from llambo.gateway import sse
from llambo.gateway.errors import Dialect, Failure, Stopping, failure_of, failure_of_node
from llambo.gateway.output import EXTENSION, ClientGone, Output
from llambo.gateway.streams import Stream, Streams

log = logging.getLogger("llambo.gateway")

DEBUG_HEADER = b"x-llambo-debug"
_PROMPTS = ("messages", "input", "prompt", "query", "content", "input_prefix")
Headers = list[tuple[bytes, bytes]]


class Refused(Exception):
    """The request was refused; `failure` says it to the outside."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Exchange:
    """One HTTP request and its reply: who asks, and how far the reply has got.

    What the guard has found out is in the scope's state: `request_id`, `owner` (a token's id or ""). `output` is for
    the pieces of a stream, once it is open.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, dialect: Dialect) -> None:
        state: dict[str, Any] = scope.get("state") or {}
        self.id: str = state.get("request_id") or f"req-{uuid.uuid4().hex}"
        self.owner: str = state.get("owner") or ""
        self.dialect = dialect
        self.receive = receive
        self.send = send
        self.output: Output = scope["extensions"][EXTENSION]
        self.is_open = False  # the headers of a stream are out
        self._headers = scope["headers"]

    def header(self, name: bytes) -> str:
        """The value of a request's header, "" without it."""
        return next((value.decode("latin-1") for key, value in self._headers if key == name), "")

    async def body(self) -> bytes:
        """The request's body. Raises: `ClientGone`, `TooLarge`."""
        pieces: list[bytes] = []
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            pieces.append(message.get("body", b""))
            if not message.get("more_body"):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def open(self, content_type: str, node: str = "") -> None:
        """Sends the headers of a stream."""
        headers = [(b"content-type", content_type.encode("latin-1")), *sse.HEADERS, *self._told(node)]
        self.is_open = True
        self.output.begin()
        await self.send({"type": "http.response.start", "status": 200, "headers": headers})

    async def piece(self, piece: bytes) -> None:
        """Sends a part of the stream; returns once there is room for another one. Raises: `ClientGone`."""
        self.output.write(piece)
        await self.output.room()

    async def end(self) -> None:
        """Ends the stream."""
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes, node: str = "") -> None:
        """Sends a reply that is no stream."""
        headers = [*headers, (b"content-length", str(len(body)).encode()), *self._told(node)]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body})

    async def json(self, value: object, node: str = "") -> None:
        """Sends `value` as a reply."""
        await self.whole(200, [(b"content-type", b"application/json")], msgspec.json.encode(value), node)

    async def fail(self, failure: Failure) -> None:
        """Ends with `failure`: as the reply, or as a stream's last event."""
        if not self.is_open:
            await self.whole(failure.status, failure.headers, failure.body(self.dialect))
            return
        self.output.write(failure.event(self.dialect))
        await self.end()

    def _told(self, node: str) -> Headers:
        return [(b"x-llambo-node", node.encode())] if node and self.header(DEBUG_HEADER) == "1" else []


class Leash:
    """Ends what runs inside it with an exception: `ClientGone` when the client hangs up, or what `pull` is given.

    The request's body must have been read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._timeout = asyncio.timeout(None)  # it cancels what is inside, and tells that from other cancellations
        self._why: Exception | None = None
        self._is_over = False

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        self._watch = asyncio.create_task(self._watch_client())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over = True
        self._watch.cancel()
        del self._watch  # it ends with an exception whose traceback knows us
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._why is None:
                raise
            raise self._why from None

    def pull(self, why: Exception) -> None:
        """Ends it with `why`, unless it is over or pulled already."""
        if self._why is None and not self._is_over:
            self._why = why
            self._timeout.reschedule(asyncio.get_running_loop().time())

    async def _watch_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.pull(ClientGone())


class Pulse:
    """Pings the client of an open stream each time that nothing was sent for `interval_s` seconds.

    With `opens` a stream that is not open by then is opened: what goes wrong later is told in the stream.
    """

    def __init__(self, exchange: Exchange, interval_s: float, *, opens: bool = False) -> None:
        self._exchange = exchange
        self._interval_s = interval_s
        self._opens = opens
        self._opening: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._timer = self._loop.call_later(self._interval_s, self._look)
        return self

    def __exit__(self, *about: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._opening is not None:  # one that has not begun must not follow the end
            self._opening.cancel()

    def _look(self) -> None:
        now, output = self._loop.time(), self._exchange.output
        due = output.last_s + self._interval_s
        if due <= now:
            due = now + self._interval_s
            if not self._exchange.is_open:
                if self._opens and self._opening is None:
                    self._opening = self._loop.create_task(self._open())
            elif output.has_room:  # else it would not reach the client either
                output.write(sse.PING)
        self._timer = self._loop.call_at(due, self._look)

    async def _open(self) -> None:
        if not self._exchange.is_open:
            await self._exchange.open("text/event-stream")


async def answer(
    exchange: Exchange, relays: Relays, streams: Streams, request: RelayRequest
) -> tuple[bytes, RelayReply]:
    """A reply that is no stream, whole. Raises: `LlamboError`, `Refused`, `ClientGone`."""
    leash = Leash(exchange.receive)
    with streams.answering(leash.pull):
        async with leash, relays.relay(request) as reply:
            return await _collected(reply, request), reply


async def deliver(
    exchange: Exchange, relays: Relays, streams: Streams, stream: Stream, *, ping_s: float, start: int = 0
) -> None:
    """A stream from its beginning; one that was lost, from its event number `start`: replayed, then gone on with.

    Raises: `LlamboError`, `Refused`, `ClientGone`; the end is the caller's to send then.
    """
    leash = Leash(exchange.receive)
    streams.run(stream, leash.pull)
    keep = False
    try:
        with Pulse(exchange, ping_s):
            async with leash:
                if stream.transcript is not None:
                    await exchange.open("text/event-stream")
                    for event in stream.transcript.events(start):
                        await exchange.piece(event)
                if not stream.is_whole:
                    await _relay(exchange, relays, stream)
        keep = True
        await exchange.end()
    except (ClientGone, LlamboError) as error:
        keep = not isinstance(error, Diverged | Cancelled | Stopping)  # another try may do better
        raise
    finally:
        streams.stopped(stream, keep=keep)


async def _relay(exchange: Exchange, relays: Relays, stream: Stream) -> None:
    request = stream.request
    if stream.transcript is not None:
        request = replace(request, resume=stream.transcript)
    async with relays.relay(request) as reply:
        if reply.status != 200:
            await _collected(reply, request)
        stream.transcript = reply.transcript
        if not exchange.is_open:
            await exchange.open(reply.content_type, reply.node)
        while not await reply.pour(exchange.output.write):
            await exchange.output.room()


async def _collected(reply: RelayReply, request: RelayRequest) -> bytes:
    """The whole body. Raises: `Refused` unless its status is 200."""
    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        return True

    await reply.pour(take)
    body = b"".join(pieces)
    if reply.status != 200:
        prompt = next((name for name in _PROMPTS if name in (request.fields or ())), None)
        raise Refused(failure_of_node(reply.status, body, reply.node, prompt))
    return body


async def ended(exchange: Exchange, error: Exception) -> None:
    """Ends the exchange with what was raised; a client that is gone is told nothing."""
    match error:
        case ClientGone():
            return
        case Refused():
            await exchange.fail(error.failure)
        case LlamboError():
            await exchange.fail(failure_of(error))
        case _:
            log.error("request %s failed", exchange.id, exc_info=error)
            await exchange.fail(Failure(500, "failed", "the gateway itself failed; its log says why"))
