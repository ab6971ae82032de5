"""What is asked, and when: bodies and arrival times, all of them computed from a seed.

Pure. Request number i is the same whatever the number of requests, of streams, or the order in which they are sent.
Only `random.Random.random` is drawn from: Python promises the same values from it in every version.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

Endpoint = Literal["chat", "completions"]
Arrivals = Literal["poisson", "even"]

PATHS: Mapping[Endpoint, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

_TOKENS_PER_WORD = 1.3
"""Of these words, with a vocabulary of the usual size."""

_WORDS = """
    a about after again all also another answer any are as at back because before begin between both but by call can
    change clear close come could day different do does each early end even every example far few find first for from
    general get give go good great group hand hard have help here high home house how if important in into is it just
    keep kind know large last later learn leave less let light like line little long look machine make many mean more
    most much must name need never new next no node not now number of off often on one only open or order other our
    out over own part people place plan point possible present problem program question quick read reason right same
    say second see set several short should show side simple small so some start state still such system take tell
    than that the their then there these they thing think this through time to together under until up use very want
    water way we well what when where which while who why will with without word work world would write year you
""".split()  # noqa: SIM905 - a paragraph, not three hundred lines


@dataclass(frozen=True, slots=True)
class Span:
    """Whole numbers from `low` to `high`, both included."""

    low: int
    high: int

    def pick(self, chance: random.Random) -> int:
        """One of them, each as likely."""
        return self.low + int(chance.random() * (self.high - self.low + 1))


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests of one run.

    `prompt_tokens` is about how long the prompts are: they are common English words, at 1.3 tokens a word.
    `max_tokens` bounds the answers. `extra` are further members of every body (`{"ignore_eos": true}`); they win.
    """

    model: str = ""
    endpoint: Endpoint = "chat"
    streams: bool = True
    prompt_tokens: Span = Span(32, 32)
    max_tokens: Span = Span(64, 64)
    temperature: float = 0.0
    seed: int = 1
    extra: Mapping[str, Any] = field(default_factory=dict)

    def body(self, number: int) -> bytes:
        """The JSON body of request `number`."""
        chance = random.Random(f"{self.seed}/{number}")
        text = _text(chance, self.prompt_tokens.pick(chance))
        asked: dict[str, Any] = {"model": self.model} if self.model else {}
        if self.endpoint == "chat":
            asked["messages"] = [{"role": "user", "content": text}]
        else:
            asked["prompt"] = text
        asked["max_tokens"] = self.max_tokens.pick(chance)
        asked["temperature"] = self.temperature
        asked["seed"] = int(chance.random() * 2**31)
        asked["stream"] = self.streams
        return msgspec.json.encode(asked | dict(self.extra))


def _text(chance: random.Random, tokens: int) -> str:
    words = [_WORDS[int(chance.random() * len(_WORDS))] for _ in range(max(1, round(tokens / _TOKENS_PER_WORD)))]
    return f"{' '.join(words).capitalize()}."


def arrivals_s(kind: Arrivals, *, rate: float, count: int, seed: int) -> list[float]:
    """When each of `count` requests comes, in seconds from the start, at `rate` a second on average."""
    if kind == "even":
        return [number / rate for number in range(count)]
    chance = random.Random(f"{seed}/arrivals")
    moments, moment = [], 0.0
    for _ in range(count):
        moments.append(moment)
        moment -= math.log(1.0 - chance.random()) / rate
    return moments
