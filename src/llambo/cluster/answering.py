"""One request's way through the cluster: a place, an attempt, and another of each while nodes fail it.

Joins what knows nothing of each other: the runtime's ticket (where), the failover's answer (what is asked and what is
still to be delivered) and the node's stream (the tokens).
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TypeVar

from llambo.cluster import bounds, prefix
from llambo.cluster.events import RequestFinished
from llambo.cluster.failover import Answer, Attempt, StreamEnd
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import EMBED, Crowd, Route
from llambo.cluster.tickets import Place, Ticket
from llambo.cluster.upstream import Upstream
from llambo.cluster.world import serves
from llambo.core.errors import EngineFailed, LlamboError, NodeLost, PromptTooLong
from llambo.core.types import MAX_SEED, Done, Event, GenerateRequest, TokenEvent

_T = TypeVar("_T")
_numbers = itertools.count(1)


def route_of(request: GenerateRequest, model: str, crowd: Crowd | None = None) -> tuple[Route, str]:
    """What routing needs of a request, and the text that its prefixes are hashed of."""
    text = request.raw_prompt
    if text is None:
        text = prefix.conversation_text((message.role, message.content) for message in request.messages)
    route = Route(
        next(_numbers),
        model,
        session=request.session,
        node_type=request.node_type,
        chain=prefix.chain(text),
        size_chars=len(text),
        max_tokens=request.sampling.max_tokens or 0,
        crowd=crowd,
    )
    return route, text


class Answering:
    """One request for text, to a node apart from its `crowd` where it has one. `count` is told of tokens as they come.

    `node` is the one that it is on or was on last.
    """

    def __init__(
        self,
        runtime: Runtime,
        request: GenerateRequest,
        model: str,
        count: Callable[[int], None],
        crowd: Crowd | None = None,
    ) -> None:
        self._runtime = runtime
        self._request = request
        self._model = model
        self._count = count
        self._crowd = crowd
        self._answer: Answer | None = None
        self._node: Place | None = None
        self.node = ""
        self._first = 0.0
        self._end: StreamEnd | None = None
        self._tokens_per_s = 0.0  # of the last node, as it says itself

    async def events(self) -> AsyncGenerator[Event, None]:
        """Token events, then one `Done`. Raises: see `Door.generate`."""
        bounds.check(self._request)
        started = time.perf_counter()
        route, text = route_of(self._request, self._model, self._crowd)
        with self._runtime.submit(route) as ticket:
            while self._end is None:
                place = await ticket.place()
                self.node = place.node
                async with aclosing(self._attempt(place, ticket)) as events:
                    async for event in events:
                        self._first = self._first or time.perf_counter()
                        self._count(1)
                        yield event
            ended = time.perf_counter()
            yield self._finish(ticket, text, started, ended)

    async def _attempt(self, place: Place, ticket: Ticket) -> AsyncGenerator[TokenEvent, None]:
        """What one node gives. Returns without an end when the node failed and another is to go on."""
        try:
            attempt = await self._ask(place)
            self._node = place
            if isinstance(attempt, StreamEnd):
                self._end = attempt
                return
            assert self._answer is not None
            async with aclosing(place.upstream.stream(attempt)) as events:
                async for event in events:
                    if isinstance(event, StreamEnd):
                        self._end = self._answer.end(event)
                        self._tokens_per_s = event.tokens / event.decode_s if event.decode_s else 0.0
                        return
                    for piece in self._answer.take(event):
                        yield piece
        except NodeLost as error:
            ticket.broken("lost", error, has_delivered=self._first > 0)
        except EngineFailed as error:
            ticket.broken("failed", error, has_delivered=self._first > 0)
        except PromptTooLong as error:
            ticket.broken("too_long", error, has_delivered=self._first > 0)
        except LlamboError:
            ticket.failed()
            raise

    async def _ask(self, place: Place) -> Attempt | StreamEnd:
        upstream = place.upstream
        if self._answer is None:
            prompt = await upstream.prompt_text(self._request)
            self._answer = Answer(self._request, prompt, random.randint(0, MAX_SEED))  # noqa: S311 - a sampler's seed
            return self._answer.first(upstream.ctx)
        answer = self._answer
        prompt_ids = tail_ids = prompt_text = None
        if self._node is not None and self._node.upstream.has_ids != upstream.has_ids:
            prompt_text = await upstream.prompt_text(self._request)
        if upstream.has_ids and answer.needs_prompt_ids:
            prompt = answer.prompt if prompt_text is None else prompt_text
            prompt_ids = await upstream.tokenize(prompt, add_special=True)
            tail_ids = await upstream.tokenize(answer.tail) if answer.tail else None
        return answer.again(
            has_ids=upstream.has_ids,
            prompt_ids=prompt_ids,
            tail_ids=tail_ids,
            ctx=upstream.ctx,
            prompt=prompt_text,
        )

    def _finish(self, ticket: Ticket, text: str, started: float, ended: float) -> Done:
        end, answer, node = self._end, self._answer, self._node
        assert end is not None
        assert answer is not None
        assert node is not None
        first = self._first or ended
        tail = answer.text
        if self._request.raw_prompt is None:  # as the next turn of the conversation will have it
            tail = prefix.conversation_text([("assistant", tail)])
        ticket.finished(
            RequestFinished(
                ticket.route.id,
                tokens=end.tokens,
                decode_s=end.tokens / self._tokens_per_s if self._tokens_per_s else 0.0,
                prompt_tokens=end.prompt_tokens,
                cached_tokens=end.cached_tokens,
                chain=prefix.chain(text + tail),
            )
        )
        return Done(
            finish_reason=end.finish_reason,
            model=self._model,
            node=node.node,
            tokens=end.tokens,
            prompt_tokens=end.prompt_tokens,
            cached_tokens=end.cached_tokens,
            ttft_ms=(first - started) * 1e3,
            time_ms=(ended - started) * 1e3,
            failovers=answer.failovers,
        )


async def embed(runtime: Runtime, text: str, model: str) -> list[float]:
    """The embedding of `text`. Raises: see `Door.embed`."""
    route = Route(next(_numbers), model, EMBED, size_chars=len(text))
    return await _on_some_node(runtime, route, lambda upstream: upstream.embed(text))


async def tokenize(runtime: Runtime, text: str, model: str) -> list[int]:
    """The token ids of `text`. Takes no slot where a node serves; else waits for one to come.

    Raises: see `Door.tokenize`.
    """
    world = runtime.orchestrator.world
    for node in list(world.models[model].nodes()) if model in world.models else ():
        place = runtime.place_of(node.id)
        if serves(node) and place is not None and place.epoch == node.epoch and place.upstream.has_ids:
            with suppress(NodeLost, EngineFailed):  # the next one may do better
                return await place.upstream.tokenize(text)
    return await _on_some_node(
        runtime, Route(next(_numbers), model, size_chars=len(text)), lambda upstream: upstream.tokenize(text)
    )


async def _on_some_node(runtime: Runtime, route: Route, ask: Callable[[Upstream], Awaitable[_T]]) -> _T:
    """What a node answers that is given nothing piece by piece; another one is asked where it fails."""
    with runtime.submit(route) as ticket:
        while True:
            place = await ticket.place()
            try:
                reply = await ask(place.upstream)
            except NodeLost as error:
                ticket.broken("lost", error, has_delivered=False)
            except EngineFailed as error:
                ticket.broken("failed", error, has_delivered=False)
            except LlamboError:
                ticket.failed()
                raise
            else:
                ticket.finished(RequestFinished(ticket.route.id))
                return reply
