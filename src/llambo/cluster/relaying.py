"""A relayed request's way through the cluster: a place, a node's own reply to it, and another of each while nodes fail.

The sibling of `answering` for requests that are not understood here. Joins the runtime's ticket (where), the node's
reply (bytes) and the transcript (what the reader still lacks).

1. Nothing was given yet: another node is asked, and nobody notices. A reply that does not stream is not given before it
   is whole, so for such a one this is the only case.
2. Events were given: the request runs again from its start on another node, and the transcript lets through what the
   reader lacks. A request without a seed is given one, so that the second run can be the same.
3. A refusal that is the request's own fault is given as the node said it.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from llambo.cluster import prefix
from llambo.cluster.events import RequestFinished
from llambo.cluster.relay import RelayRequest, Take
from llambo.cluster.relay_counts import Counts, counts_of_body, counts_of_events, has_ended, is_last
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import EMBED, GENERATE, RERANK, Route
from llambo.cluster.tickets import Place, Ticket
from llambo.cluster.transcript import END, Transcript, parsed
from llambo.cluster.upstream_relay import NodeReply, NotThere, RelayCall
from llambo.cluster.world import serves
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NodeLost, PromptTooLong
from llambo.core.types import MAX_SEED

_numbers = itertools.count(-1, -1)
"""Below zero, so that no request of `answering` has the same one."""
_NO_SEED = (b"", b"null", b"-1")
_TAIL = 8
"""So many events at the end of a stream hold what it says of itself."""
_KINDS = {"generate": GENERATE, "embed": EMBED, "rerank": RERANK, "look": GENERATE}


class Relaying:
    """One relayed request; a `RelayReply` within `running`. `count` is told of events as they come, one a token."""

    def __init__(self, runtime: Runtime, request: RelayRequest, model: str, count: Callable[[int], None]) -> None:
        self._runtime = runtime
        self._request = request
        self._model = model
        self._count = count
        self.transcript = request.resume or Transcript()
        self._call = _call_of(request, self.transcript)
        self._ticket: Ticket | None = None
        self._stack = AsyncExitStack()  # the connection to the present node
        self._reply: NodeReply | None = None
        self._refusal: NodeReply | None = None  # of a node whose context is too small
        self._take: Take  # of the present `pour`
        self._is_given = False  # to its end, or to its error
        self._started = time.perf_counter()
        self._counted = 0
        self.status = 200
        self.content_type = "text/event-stream"
        self.node = ""
        self.outcome = "cancelled"
        """How it ended, as the metrics call it: "done", "error" or "cancelled"."""
        self.counts = Counts()
        """What the node counted, once it is done."""
        self.ttft_s: float | None = None
        """From the arrival to the first event; None where there was none."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Relaying]:
        """Entered once a node has answered. Raises: see `Relays.relay`."""
        try:
            if self.transcript.is_whole:
                self.outcome = "done"
                yield self
            elif self._request.kind == "look" and await self._look():
                yield self
            else:
                with self._runtime.submit(self._route()) as self._ticket:
                    try:
                        await self._ask(self._ticket)
                        yield self
                    finally:
                        await self._stack.aclose()
        except LlamboError:
            self.outcome = "error"
            raise
        finally:
            await self._stack.aclose()
            self._reply = None  # it knows us: we would be garbage that only a search for cycles finds

    async def pour(self, take: Take) -> bool:
        """See `RelayReply`; one task at a time."""
        reply, ticket = self._reply, self._ticket
        if reply is None or self._is_given:
            return True
        if not reply.streams:
            self._is_given = True
            take(reply.body)
            return True
        assert ticket is not None
        try:
            self._take = take
            self._is_given = await self._pour_stream(ticket)
        except LlamboError:
            self._is_given = True
            self.outcome = "error"
            ticket.failed()
            raise
        return self._is_given

    async def _pour_stream(self, ticket: Ticket) -> bool:
        """`pour` over as many nodes as it takes."""
        while True:
            try:
                if not await self._reply_now().pour(self._give):
                    return False
                self._end_stream(ticket)
            except NodeLost as error:
                if self._is_over(ticket):
                    return True
                ticket.broken("lost", error, has_delivered=self._counted > 0)
            except EngineFailed as error:
                ticket.broken("failed", error, has_delivered=self._counted > 0)
            else:
                return True
            await self._stack.aclose()
            await self._ask(ticket)

    def _give(self, piece: bytes) -> bool:
        """Gives what the reader lacks of `piece`; whether more is wanted. Raises: `Diverged`."""
        fresh = self.transcript.take(piece)
        if not fresh:
            return True
        if self.ttft_s is None:
            self.ttft_s = time.perf_counter() - self._started
        events = fresh.count(END)
        self._counted += events
        self._count(events)
        return self._take(fresh)

    # --- a node ---------------------------------------------------------------------------------------------------

    async def _ask(self, ticket: Ticket) -> None:
        """Returns once a node has answered: with its headers where it streams, else with all of it."""
        has_delivered = self._counted > 0
        while True:
            try:
                place = await ticket.place()
            except PromptTooLong:
                if self._refusal is None or has_delivered:
                    raise
                self._accept(self._refusal, ticket)
                return
            try:
                reply = await self._stack.enter_async_context(place.upstream.relay(self._call))
            except NodeLost as error:
                ticket.broken("lost", error, has_delivered=has_delivered)
            except EngineFailed as error:
                ticket.broken("failed", error, has_delivered=has_delivered)
            except NotThere as error:
                ticket.broken("failed", self._not_there(error), has_delivered=has_delivered)
            except LlamboError:
                ticket.failed()
                raise
            else:
                self.node = place.node
                if reply.too_long is None:
                    self._accept(reply, ticket)
                    return
                self._refusal = reply
                ticket.broken("too_long", reply.too_long, has_delivered=has_delivered)
            await self._stack.aclose()

    async def _look(self) -> bool:
        """Whether some node that serves has answered, for what takes no slot."""
        for place in self._serving():
            try:
                reply = await self._stack.enter_async_context(place.upstream.relay(self._call))
            except (NodeLost, EngineFailed, NotThere):  # the next one may do better
                await self._stack.aclose()
                continue
            self.node = place.node
            self._accept(reply, None)
            return True
        return False

    def _serving(self) -> Iterator[Place]:
        model = self._runtime.orchestrator.world.models.get(self._model)
        for node in model.nodes() if model else ():
            place = self._runtime.place_of(node.id)
            if serves(node) and GENERATE in node.kinds and place is not None and place.epoch == node.epoch:
                yield place

    def _accept(self, reply: NodeReply, ticket: Ticket | None) -> None:
        """The reply is the one that is given on, or goes on with what was given."""
        if self.transcript.count:
            if reply.status != 200 or not reply.streams:
                if ticket is not None:
                    ticket.failed()
                raise BadRequest(f"another node took over and does not take the request (HTTP status {reply.status})")
            self.transcript.again()
        self._reply = reply
        self.status, self.content_type = reply.status, reply.content_type
        if reply.streams:
            return
        if reply.status == 200:
            self.counts = counts_of_body(reply.body)
            self._finish(ticket)
        else:
            self.outcome = "error"
            if ticket is not None:
                ticket.failed()

    def _reply_now(self) -> NodeReply:
        assert self._reply is not None
        return self._reply

    def _not_there(self, error: NotThere) -> BadRequest:
        return BadRequest(f"no node of model {self._model} takes {self._request.path}: {error}")

    # --- the end --------------------------------------------------------------------------------------------------

    def _end_stream(self, ticket: Ticket) -> None:
        """The node closed its answer. Raises: `NodeLost` where that was too early, `Diverged`."""
        tail = [parsed(event) for event in self.transcript.tail(_TAIL)]
        if not has_ended(tail):
            raise NodeLost(f"node {self.node} ended its answer early")
        self.transcript.end()
        self.counts = counts_of_events([*map(parsed, self.transcript.head(1)), *tail])
        self._finish(ticket)

    def _is_over(self, ticket: Ticket) -> bool:
        """Whether a node that is lost had given its answer's very last event."""
        tail = self.transcript.tail(1)
        if not tail or self.transcript.is_replaying or not is_last(parsed(tail[0])):
            return False
        self._end_stream(ticket)
        return True

    def _finish(self, ticket: Ticket | None) -> None:
        counts = self.counts
        self.outcome = "done"
        if counts.tokens:  # until now each event counted as one
            self._count(counts.tokens - self._counted)
        if ticket is not None:
            ticket.finished(
                RequestFinished(
                    ticket.route.id,
                    tokens=counts.tokens,
                    decode_s=counts.decode_s,
                    prompt_tokens=counts.prompt_tokens,
                    cached_tokens=counts.cached_tokens,
                    chain=ticket.route.chain,
                )
            )

    def _route(self) -> Route:
        request = self._request
        return Route(
            next(_numbers),
            self._model,
            _KINDS[request.kind],
            session=request.session,
            node_type=request.node_type,
            chain=prefix.chain(request.text),
            size_chars=len(request.text),
            max_tokens=request.max_tokens,
        )


def _call_of(request: RelayRequest, transcript: Transcript) -> RelayCall:
    """What nodes are asked; the seed that is drawn stays with the transcript, so that a later relay has the same."""
    call = RelayCall(request.path, request.fields, request.streams)
    if request.kind != "generate" or request.fields is None or bytes(request.fields.get("seed", b"")) not in _NO_SEED:
        return call
    if transcript.seed is None:
        transcript.seed = random.randint(0, MAX_SEED)  # noqa: S311 - a sampler's seed
    return replace(call, seed=transcript.seed)
