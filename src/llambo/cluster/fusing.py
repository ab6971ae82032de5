"""One question to several nodes: voters are asked at once, apart from each other, until the outcome cannot change.

Each voter is a request as any other (`answering`), with its own seed, its own place and its own failover. What the
answers amount to is for `fusion` to say; what they are compared by, for `extract`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from llambo.cluster import bounds
from llambo.cluster.answering import Answering
from llambo.cluster.averaging import Averaging
from llambo.cluster.extract import Extract
from llambo.cluster.fusion import Ballot, Rules, Tally, tally_for
from llambo.cluster.fusion_plan import Fusing, Plan, seed_of
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import Crowd
from llambo.core.errors import LlamboError, NoQuorum, TimedOut
from llambo.core.fusion import Fusion, Vote, VoteCast
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent


@dataclass(slots=True, eq=False)
class _Voter:
    """One voter: what it is asked, and what has come of it."""

    number: int
    answering: Answering
    tokens: list[TokenEvent] = field(default_factory=list)
    done: Done | None = None
    error: LlamboError | None = None
    time_ms: float = 0.0
    ballot: Ballot | None = None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.tokens)

    @property
    def logprob(self) -> float | None:
        """The mean over its tokens, as far as its nodes tell; an event may be several of them."""
        told = [(event.logprob, max(1, len(event.ids))) for event in self.tokens if event.logprob is not None]
        return sum(logprob for logprob, _ in told) / sum(count for _, count in told) if told else None


class Voting:
    """One question that each voter answers by itself."""

    def __init__(self, runtime: Runtime, request: GenerateRequest, plan: Plan, count: Callable[[int], None]) -> None:
        self._runtime = runtime
        self._request = request
        self._plan = plan
        rules = Rules(
            plan.strategy,
            plan.asked,
            plan.need,
            is_ordered=request.sampling.seed is not None,
            heaviest=plan.heaviest,
        )
        self._tally: Tally = tally_for(rules)
        crowd = Crowd()
        self._voters = [
            _Voter(number, Answering(runtime, self._asked_of(number), model, count, crowd))
            for number, model in enumerate(plan.models)
        ]
        self._over: list[_Voter] = []  # in the order in which they answered or failed
        self._running: dict[asyncio.Task[None], _Voter] = {}
        self._started = 0.0
        self.agreement = 0.0
        self._chosen: _Voter | None = None

    async def events(self) -> AsyncGenerator[Event, None]:
        """See `Fusing.events`."""
        bounds.check(self._request)
        self._started = time.perf_counter()
        cancelled = 0
        async with Extract(self._plan.extract) as extract:
            try:
                self._running = {asyncio.create_task(self._ask(voter)): voter for voter in self._voters}
                while not self._is_over():
                    casts = [await self._count_in(voter, extract) for voter in await self._next()]
                    if self._is_over():  # before anything is given: the caller may be slow to take it
                        cancelled = await self._cancel(self._running)
                    for cast in casts:
                        yield cast
            finally:
                await self._cancel(self._running)
        chosen = self._chosen = self._outcome()
        first = time.perf_counter()
        for event in chosen.tokens:
            yield event if self._request.logprobs else replace(event, logprob=None)
        yield self._done(chosen, cancelled, first)

    @property
    def other_tokens(self) -> int:
        """See `Fusing.other_tokens`."""
        return sum(voter.done.tokens for voter in self._over if voter.done is not None and voter is not self._chosen)

    def _is_over(self) -> bool:
        return not self._running or self._tally.is_settled or self._tally.is_hopeless

    def _asked_of(self, number: int) -> GenerateRequest:
        """The voter's own request. Ties go to the more confident, so log-probabilities are wanted where ties can be."""
        request, sampling = self._request, self._request.sampling
        return replace(
            request,
            fusion=None,
            sampling=replace(sampling, seed=seed_of(sampling.seed, number)),
            logprobs=request.logprobs or self._plan.strategy != "weighted-average",
        )

    async def _ask(self, voter: _Voter) -> None:
        try:
            async with aclosing(voter.answering.events()) as events:
                async for event in events:
                    if isinstance(event, TokenEvent):
                        voter.tokens.append(event)
                    elif isinstance(event, Done):
                        voter.done = event
        except LlamboError as error:
            voter.error = error
        voter.time_ms = self._elapsed_ms()

    async def _next(self) -> list[_Voter]:
        """Those who are over next, or all who are still at it when the time is up, which fails them."""
        left_s = self._plan.timeout_s - self._elapsed_ms() / 1e3
        ended, _ = await asyncio.wait(self._running, timeout=max(0.0, left_s), return_when=asyncio.FIRST_COMPLETED)
        late = set() if ended else set(self._running)
        await self._cancel(late)
        for voter in (self._running[task] for task in late):
            if voter.done is None:
                voter.error = TimedOut(f"no answer within {self._plan.timeout_s:g} s")
                voter.time_ms = self._elapsed_ms()
        over = [self._running.pop(task) for task in ended | late]
        for task in ended:
            task.result()  # a fault of ours must not look like a vote
        return sorted(over, key=lambda voter: (voter.time_ms, voter.number))

    async def _count_in(self, voter: _Voter, extract: Extract) -> VoteCast:
        self._over.append(voter)
        if voter.done is None:
            self._tally.failed(voter.number)
        else:
            node = self._runtime.orchestrator.world.nodes.get(voter.done.node)
            weight = self._plan.weight_of(node.type) if node is not None else 1.0
            voter.ballot = Ballot(voter.number, await extract.of(voter.text), voter.logprob, weight)
            await asyncio.to_thread(self._tally.cast, voter.ballot)  # comparing long texts takes its time
        self.agreement = self._tally.agreement
        return VoteCast(self._vote(voter), self._plan.asked, self._answered, self.agreement)

    async def _cancel(self, tasks: Iterable[asyncio.Task[None]]) -> int:
        """Ends those voters; returns once their slots are free. Gives their number."""
        ending = list(tasks)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)
        return len(ending)

    def _outcome(self) -> _Voter:
        """The voter that is chosen. Raises: see `events`."""
        if not self._answered:
            raise next(voter.error for voter in self._over if voter.error is not None)
        if self._tally.is_hopeless:
            count, asked, need = self._tally.leading, self._plan.asked, self._plan.need
            raise NoQuorum(f"no quorum: {count} of {asked} nodes agree, {need} are needed")
        return self._voters[self._tally.chosen().voter]

    def _done(self, chosen: _Voter, cancelled: int, first: float) -> Done:
        assert chosen.done is not None
        votes = tuple(map(self._vote, self._over))
        return replace(
            chosen.done,
            ttft_ms=(first - self._started) * 1e3,
            time_ms=self._elapsed_ms(),
            fusion=Fusion(
                strategy=self._plan.strategy,
                agreement=self.agreement,
                asked=self._plan.asked,
                answered=self._answered,
                cancelled=cancelled,
                votes=votes,
            ),
        )

    def _vote(self, voter: _Voter) -> Vote:
        done, ballot = voter.done, voter.ballot
        return Vote(
            node=voter.answering.node,
            model=self._plan.models[voter.number],
            text=voter.text if done is not None else "",
            tokens=done.tokens if done is not None else 0,
            weight=self._tally.weight_of(ballot) if ballot is not None else 0.0,
            time_ms=voter.time_ms,
            logprob=voter.logprob if done is not None else None,
            error=voter.error.message if voter.error is not None else "",
        )

    @property
    def _answered(self) -> int:
        return sum(voter.done is not None for voter in self._over)

    def _elapsed_ms(self) -> float:
        return (time.perf_counter() - self._started) * 1e3


def of(runtime: Runtime, request: GenerateRequest, plan: Plan, count: Callable[[int], None]) -> Fusing:
    """The question, ready to be asked. `count` is told of tokens as they come, whoever makes them."""
    make = Averaging if plan.strategy == "token-average" else Voting
    return make(runtime, request, plan, count)
