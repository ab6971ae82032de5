"""Synthetic load: chats whose turns share a growing prefix, as hashes and token counts without any text.

A chat's text is its system prompt, which other chats share, and then its own words. Its hashes are as many as a real
text cut at `prefix.CUTS` has: equal for equal beginnings, different from there on. That is all that is asked of them,
so they are numbers in a row: from 0 on of chats, below 0 of system prompts.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from math import log
from random import Random

from llambo.cluster.prefix import CUTS, MAX_HASHES
from llambo.cluster.simulate.scenario import Scenario
from llambo.cluster.state import Route

MODEL = "simulated"
CHARS_PER_TOKEN = 4
MEAN_ANSWER, MIN_ANSWER, MAX_ANSWER = 100, 8, 400
MEAN_QUESTION, MIN_QUESTION, MAX_QUESTION = 60, 5, 300
MIN_SYSTEM, MAX_SYSTEM = 64, 512


@dataclass(slots=True, eq=False)
class Chat:
    """One conversation; `tokens` is its length so far."""

    id: int
    session: str
    system: int
    system_tokens: int
    turns_left: int
    tokens: int
    known: int = 0  # tokens of it that some node has computed
    hashes: tuple[int, ...] = ()

    def chain(self, tokens: int) -> tuple[int, ...]:
        """The hashes of its first `tokens` tokens."""
        count = bisect_right(CUTS, tokens * CHARS_PER_TOKEN)
        if count > len(self.hashes):
            known = len(self.hashes)
            own = min(max(bisect_right(CUTS, self.system_tokens * CHARS_PER_TOKEN), known), count)
            first = self.id * MAX_HASHES
            self.hashes += _of_system(self.system)[known:own] + tuple(range(first + own, first + count))
        return self.hashes if count == len(self.hashes) else self.hashes[:count]


@dataclass(slots=True, eq=False)
class Request:
    """One turn on its way. `emitted` are the tokens of its answer that were delivered already."""

    id: int
    chat: Chat
    prompt: int
    answer: int
    arrived: float
    emitted: int = 0
    started: float = -1.0  # when it was first on a node
    has_first: bool = False
    placing: int = 0  # counts placements: what was planned for an earlier one is void
    node: str = ""
    slot: int = -1
    placed: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    cached: int = 0
    oracle: int = 0  # prompt tokens that one node with unlimited slots would have


class Load:
    """Makes chats and their requests."""

    def __init__(self, scenario: Scenario, chance: Random) -> None:
        self._scenario = scenario
        self._chance = chance
        self._chats = 0
        self.made = 0
        self.systems = [chance.randint(MIN_SYSTEM, MAX_SYSTEM) for _ in range(scenario.systems)]

    @property
    def is_spent(self) -> bool:
        """Whether all requests have been made."""
        return self.made >= self._scenario.requests

    def chat(self, session: str = "", turns: int = 0) -> Chat:
        """A new conversation."""
        self._chats += 1
        system = int(self._chance.random() * len(self.systems))
        session = session or f"s{self._chats}"
        turns = turns or 1 + int(self._chance.random() * self._scenario.turns)
        size = self.systems[system]
        return Chat(self._chats, session, system, size, turns, size)

    def turn(self, chat: Chat, now: float) -> Request:
        """The chat's next request."""
        self.made += 1
        chat.turns_left -= 1
        chat.tokens += _length(self._chance, MEAN_QUESTION, MIN_QUESTION, MAX_QUESTION)
        answer = _length(self._chance, MEAN_ANSWER, MIN_ANSWER, MAX_ANSWER)
        return Request(self.made, chat, chat.tokens, answer, now)

    def route(self, request: Request) -> Route:
        """What the orchestrator is told of it."""
        chat = request.chat
        return Route(
            request.id,
            MODEL,
            session=chat.session if self._scenario.has_sessions else "",
            chain=chat.chain(request.prompt),
            size_chars=request.prompt * CHARS_PER_TOKEN,
            max_tokens=MAX_ANSWER,
        )


@lru_cache(maxsize=4096)
def _of_system(system: int) -> tuple[int, ...]:
    """The hashes of a system prompt that never ends; the very same objects for all its chats."""
    return tuple(range(-(system + 1) * MAX_HASHES, -system * MAX_HASHES))


def _length(chance: Random, mean: int, low: int, high: int) -> int:
    length = int(-log(1.0 - chance.random()) / (1.0 / mean))  # `expovariate`, less a call
    return low if length < low else high if length > high else length
