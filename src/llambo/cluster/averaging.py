"""One text that several nodes write together: each token is chosen from the mean of what they think comes next.

Every node holds one slot for as long as the text grows, and is asked for each token again, with the ids so far; its
cache makes that one token's work. A node that fails, or is too slow for one token, is left out from then on. The mean
and the choice are `mixing`'s.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from llambo.cluster import mixing, prefix
from llambo.cluster.answering import route_of
from llambo.cluster.events import RequestFinished
from llambo.cluster.fusion_plan import Plan
from llambo.cluster.mixing import Chosen, NextToken
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import GENERATE, Crowd
from llambo.cluster.tickets import Place, Ticket
from llambo.cluster.world import serves
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NodeLost, PromptTooLong, TimedOut
from llambo.core.fusion import Fusion, Vote, VoteCast
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent

JOIN_S = 2.0
"""Once one node has a place, the others are waited for so long: two texts that wait for each other's nodes go on."""
_SPECIMEN = "Llambo's 3 nodes agreed: 12,345.67 + x_1 == «naïve» — да, 你好!\n\tfor (int i = 0; i < n; ++i) {}"
"""Models with one vocabulary make the same tokens of it; others hardly can."""


@dataclass(slots=True, eq=False)
class _Member:
    """One node that takes part, or was to: where it is, the prompt as it has it, and what it has thought so far."""

    model: str
    ticket: Ticket
    text: str
    place: Place | None = None
    weight: float = 1.0
    prompt: list[int] = field(default_factory=list)
    view: NextToken | None = None
    cached_tokens: int = 0
    logprob: float = 0.0  # its own, of the tokens that were chosen, as far as they were among its likeliest
    told: int = 0  # how many those were
    error: LlamboError | None = None
    is_full: bool = False  # its context is
    is_surplus: bool = False  # its node takes part already
    time_ms: float = 0.0

    @property
    def takes_part(self) -> bool:
        return self.place is not None and self.error is None and not (self.is_full or self.is_surplus)


class Averaging:
    """One question that nodes answer together; see `fusion_plan.Fusing`."""

    other_tokens = 0

    def __init__(self, runtime: Runtime, request: GenerateRequest, plan: Plan, count: Callable[[int], None]) -> None:
        self._runtime = runtime
        self._request = request
        self._plan = plan
        self._count = count
        self._chance = random.Random(request.sampling.seed)  # noqa: S311 - a sampler's
        self._text = mixing.Text(request.stop)
        self._members: list[_Member] = []
        self._ids: list[int] = []  # of the answer
        self._agreed, self._steps = 0.0, 0
        self._given = ""
        self._started = self._first = 0.0

    @property
    def agreement(self) -> float:
        """The weight of the nodes whose own choice was the chosen token, 0 to 1: the mean over the text and its end."""
        return self._agreed / self._steps if self._steps else 0.0

    async def events(self) -> AsyncGenerator[Event, None]:
        """The token events as the text grows, a vote of each node, and one `Done`. Raises: see `Fusing.events`."""
        if self._request.grammar or self._request.json_schema:
            raise BadRequest("token-average takes no grammar and no JSON schema; another strategy does")
        if self._plan.extract:
            raise BadRequest("token-average makes one text and compares none: leave extract out")
        self._started = time.perf_counter()
        with ExitStack() as held:
            await self._join(held)
            reason: Literal["stop", "length"] | None = None
            while reason is None:
                chosen = await self._step()
                if chosen is None:
                    reason = "length"
                elif chosen.ends:
                    reason = "stop"
                else:
                    for event in self._grow(chosen):
                        yield event
                    reason = self._reason()
            if not self._text.is_stopped:
                for event in map(self._noted, self._text.rest()):
                    yield event
            self._finish()
            votes = [self._vote(member) for member in self._members if not member.is_surplus]
            answered = 0
            for vote in votes:
                answered += not vote.error
                yield VoteCast(vote, self._plan.asked, answered, self.agreement)
            yield self._done(reason, votes, answered)

    # --- who takes part -------------------------------------------------------------------------------------------

    async def _join(self, held: ExitStack) -> None:
        """Gets every node its slot and its prompt. Raises: the first error, when there is no node left."""
        crowd = Crowd()
        for model in dict.fromkeys(self._plan.models):
            for _ in range(min(self._plan.models.count(model), self._nodes_of(model))):
                route, text = route_of(self._request, model, crowd)
                self._members.append(_Member(model, held.enter_context(self._runtime.submit(route)), text))
        await self._until_placed()
        nodes: set[str] = set()
        for member in self._members:
            if member.place is None:
                continue
            if member.place.node in nodes:
                member.is_surplus = True  # a node's second view would be its first
                member.ticket.__exit__(None, None, None)
            nodes.add(member.place.node)
        await self._each(self._live, self._prepare)
        await self._check_vocabulary()
        self._check_left()

    def _nodes_of(self, model: str) -> int:
        """How many nodes may answer for the model; one at least, which may have to start first."""
        world, wanted = self._runtime.orchestrator.world, self._request.node_type
        pools = world.models[model].pools if model in world.models else []
        able = [pool for pool in pools if GENERATE in pool.kinds and wanted in ("", pool.type)]
        return max(1, sum(serves(node) for pool in able for node in pool.nodes.values()))

    async def _until_placed(self) -> None:
        waiting = {asyncio.create_task(member.ticket.place()): member for member in self._members}
        pending = set(waiting)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._plan.timeout_s):
                    while pending and all(task.exception() for task in waiting if task.done()):
                        _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if pending:
                await asyncio.wait(pending, timeout=JOIN_S)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        for task, member in waiting.items():
            if task.cancelled():
                self._leave(member, TimedOut("no slot of its own came free in time"))
            elif isinstance(error := task.exception(), LlamboError):
                member.error, member.time_ms = error, self._elapsed_ms()
            else:
                member.place = task.result()
                node = self._runtime.orchestrator.world.nodes.get(member.place.node)
                member.weight = self._plan.weight_of(node.type) if node is not None else 1.0

    async def _prepare(self, member: _Member) -> None:
        assert member.place is not None
        upstream = member.place.upstream
        member.prompt = await upstream.tokenize(await upstream.prompt_text(self._request), add_special=True)

    async def _check_vocabulary(self) -> None:
        """Raises `BadRequest` for models whose tokens are not the same."""
        of_models = {member.model: member for member in self._live}
        if len(of_models) < 2:
            return
        found: list[list[int]] = []

        async def look(member: _Member) -> None:
            assert member.place is not None
            found.append(await member.place.upstream.tokenize(_SPECIMEN))

        await self._each(of_models.values(), look)
        if any(ids != found[0] for ids in found):
            raise mixing.no_shared_vocabulary()

    @property
    def _live(self) -> list[_Member]:
        return [member for member in self._members if member.takes_part]

    def _check_left(self) -> None:
        """Raises the first error, when there is no node left that could go on, or whose context is full."""
        if not any(member.takes_part or member.is_full for member in self._members):
            raise next(member.error for member in self._members if member.error is not None)

    # --- the text -------------------------------------------------------------------------------------------------

    async def _step(self) -> Chosen | None:
        """The next token, or None where every context is full. Raises: the first error, when no node is left."""
        await self._each(self._live, self._look)
        self._check_left()
        views = [(member.view, member.weight) for member in self._live if member.view is not None]
        if not views:
            return None
        chosen = mixing.choose(views, self._request.sampling, self._chance)
        self._agreed += chosen.agreement
        self._steps += 1
        for member in self._live:
            assert member.view is not None
            own = next((one.logprob for one in member.view.candidates if one.id == chosen.id), None)
            if own is not None:
                member.logprob += own
                member.told += 1
        return chosen

    async def _look(self, member: _Member) -> None:
        assert member.place is not None
        ids = [*member.prompt, *self._ids]
        ctx = member.place.upstream.ctx
        if self._ids and 0 < ctx <= len(ids):
            member.is_full = True
            return
        try:
            member.view = await member.place.upstream.next_token(ids)
        except PromptTooLong:
            if not self._ids:
                raise
            member.is_full = True
        if not self._ids and member.view is not None:
            member.cached_tokens = member.view.cached_tokens

    async def _each(self, members: Iterable[_Member], step: Callable[[_Member], Awaitable[None]]) -> None:
        """Takes a step with each node; one that fails is left out from now on. Raises what is the request's fault."""

        async def attempt(member: _Member) -> None:
            try:
                async with asyncio.timeout(self._plan.timeout_s):
                    await step(member)
            except TimeoutError:
                self._leave(member, TimedOut(f"no next token within {self._plan.timeout_s:g} s"))
            except (NodeLost, EngineFailed, PromptTooLong) as error:
                self._leave(member, error)

        # All are waited for, so that nothing goes on behind a request that has failed.
        for error in await asyncio.gather(*map(attempt, members), return_exceptions=True):
            if error is not None:
                raise error

    def _leave(self, member: _Member, error: LlamboError) -> None:
        member.error = error
        member.time_ms = self._elapsed_ms()
        member.ticket.failed()

    def _grow(self, chosen: Chosen) -> list[TokenEvent]:
        self._ids.append(chosen.id)
        self._count(1)
        return [self._noted(event) for event in self._text.take(chosen)]

    def _noted(self, event: TokenEvent) -> TokenEvent:
        self._first = self._first or time.perf_counter()
        self._given += event.text
        return event if self._request.logprobs else replace(event, logprob=None)

    def _reason(self) -> Literal["stop", "length"] | None:
        """Why the text is over after this token; None where it is not."""
        most = self._request.sampling.max_tokens
        if self._text.is_stopped:
            return "stop"
        return "length" if most is not None and len(self._ids) >= most else None

    # --- the end --------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        tail = self._given
        if self._request.raw_prompt is None:
            tail = prefix.conversation_text([("assistant", tail)])
        for member in self._members:
            if member.error is None and not member.is_surplus:
                member.time_ms = self._elapsed_ms()
                member.ticket.finished(
                    RequestFinished(
                        member.ticket.route.id,
                        tokens=len(self._ids),
                        prompt_tokens=len(member.prompt),
                        cached_tokens=member.cached_tokens,
                        chain=prefix.chain(member.text + tail),
                    )
                )

    def _vote(self, member: _Member) -> Vote:
        is_there = member.error is None
        return Vote(
            node=member.place.node if member.place is not None else "",
            model=member.model,
            text=self._given if is_there else "",
            tokens=len(self._ids) if is_there else 0,
            weight=member.weight if is_there else 0.0,
            time_ms=member.time_ms,
            logprob=member.logprob / member.told if member.told and math.isfinite(member.logprob) else None,
            error="" if member.error is None else member.error.message,
        )

    def _done(self, reason: Literal["stop", "length"], votes: list[Vote], answered: int) -> Done:
        head = next(member for member in self._members if member.error is None and not member.is_surplus)
        assert head.place is not None
        return Done(
            finish_reason=reason,
            model=head.model,
            node=head.place.node,
            tokens=len(self._ids),
            prompt_tokens=len(head.prompt),
            cached_tokens=min(head.cached_tokens, len(head.prompt)),
            ttft_ms=((self._first or time.perf_counter()) - self._started) * 1e3,
            time_ms=self._elapsed_ms(),
            fusion=Fusion(
                strategy=self._plan.strategy,
                agreement=self.agreement,
                asked=self._plan.asked,
                answered=answered,
                cancelled=self._plan.asked - len(votes),
                votes=tuple(votes),
            ),
        )

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1e3
