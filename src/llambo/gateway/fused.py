"""Answers that several nodes agree on, over HTTP: asked of the door, and told as OpenAI's objects.

Owns the way from the door's events to the client, as `relay` owns that of a node's bytes. What the objects look like,
`openai` knows.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import replace

from llambo.cluster.door import Door
from llambo.core.errors import Cancelled, LlamboError, NoQuorum
from llambo.core.fusion import VoteCast
from llambo.core.tally import tally
from llambo.core.types import Done, GenerateRequest, TokenEvent
from llambo.gateway.errors import failure_of
from llambo.gateway.openai import Kind, Objects, outcome
from llambo.gateway.relay import Exchange, Leash, Pulse, Refused
from llambo.gateway.streams import Stream, Streams


class Fused:
    """One request for fusion and its reply. Raises, where it is answered: `LlamboError`, `Refused`, `ClientGone`."""

    def __init__(self, exchange: Exchange, door: Door, request: GenerateRequest, objects: Objects) -> None:
        self._exchange = exchange
        self._door = door
        self._request = request
        self._objects = objects
        self._casts: list[VoteCast] = []

    async def answer(self, streams: Streams) -> None:
        """A reply that is no stream."""
        leash = Leash(self._exchange.receive)
        try:
            with streams.answering(leash.pull):
                async with leash:
                    text, done = await self._collected()
        except LlamboError as error:
            raise self._refusal(error) from error
        await self._exchange.json(self._objects.whole(text, done), node=done.node)

    async def _collected(self) -> tuple[str, Done]:
        pieces: list[str] = []
        done: Done | None = None
        async with aclosing(self._door.generate(self._request)) as events:
            async for event in events:
                match event:
                    case VoteCast():
                        self._casts.append(event)
                    case TokenEvent(text):
                        pieces.append(text)
                    case Done():
                        done = _whole(event)
        assert done is not None, "a stream of events ends in Done or raises"
        return "".join(pieces), done

    async def deliver(self, streams: Streams, stream: Stream, *, ping_s: float, with_usage: bool) -> None:
        """A stream: votes as they are cast, the answer, its end. Whoever loses it has to ask again: it is not kept."""
        leash = Leash(self._exchange.receive)
        streams.run(stream, leash.pull)
        try:
            with Pulse(self._exchange, ping_s, opens=True):  # a vote is a whole answer, and takes as long
                async with leash:
                    await self._pour(with_usage=with_usage)
            await self._exchange.end()
        except LlamboError as error:
            raise self._refusal(error) from error
        finally:
            streams.stopped(stream, keep=False)

    async def _pour(self, *, with_usage: bool) -> None:
        exchange, objects = self._exchange, self._objects
        async with aclosing(self._door.generate(self._request)) as events:
            async for event in events:
                if not exchange.is_open:
                    await exchange.open("text/event-stream")
                match event:
                    case VoteCast():
                        self._casts.append(event)
                        await exchange.piece(objects.vote(event))
                    case TokenEvent(text):
                        await exchange.piece(objects.piece(text))
                    case Done():
                        for piece in objects.ends(_whole(event), with_usage=with_usage):
                            await exchange.piece(piece)

    def _refusal(self, error: LlamboError) -> Refused:
        """The error; where nodes did not agree, with what they said."""
        failure = failure_of(error)
        if isinstance(error, NoQuorum):
            failure = replace(failure, extensions=outcome(tally(self._casts)))
        return Refused(failure)


def objects_for(exchange: Exchange, door: Door, request: GenerateRequest) -> Objects:
    """The objects of the answer to `request`; a stream names its model before it is known who is chosen."""
    model = request.model or next((model.name for model in door.status().models), "")
    kind: Kind = "chat" if request.raw_prompt is None else "text"
    return Objects(kind, exchange.id.removeprefix("req-"), int(time.time()), model)


def _whole(done: Done) -> Done:
    """Raises: `Cancelled`."""
    if done.finish_reason == "cancelled":
        raise Cancelled("the answer was cancelled before it was whole")
    return done
