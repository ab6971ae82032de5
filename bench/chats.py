"""Chats of several turns on four nodes: what it is worth to send a conversation where its beginning is cached.

Prefix-affinity and round-robin answer the very same chats in turns, each time on nodes that have just started. People
ask and read: so many chats are open, and at any time as many answers are under way as the machine has cores, each on
an engine of one thread. Nothing queues, and the time to the first token is what the node computes of the prompt.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from bench import chat_models
from bench.harness import Report, percentile
from llambo.cluster.api import Cluster
from llambo.core import config
from llambo.core.types import Done, GenerateRequest, Message, Sampling, TokenEvent

SESSIONS, TURNS, NODES, SLOTS, AT_ONCE = 20, 8, 4, 8, 2
ROUNDS = 2
SYSTEM_TOKENS = 120
QUESTION_TOKENS = (40, 100)
ANSWER_TOKENS = (130, 300)
"""Least and most. On the average 70 and 215, as in a million real chats (LMSYS-Chat-1M, arXiv 2309.11998, table 1)."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, as it was answered; `number` counts from 1."""

    number: int
    node: str
    ttft_ms: float
    prompt_tokens: int
    cached_tokens: int


@dataclass
class _Chat:
    """A conversation so far, and where its next words come from."""

    words: random.Random
    messages: list[Message] = field(default_factory=list)
    turns: int = 0


@asynccontextmanager
async def _cluster(model: str, strategy: str, nodes: int, slots: int) -> AsyncIterator[Cluster]:
    """A cluster with a home of its own, its nodes ready."""
    settings = {
        "cluster": {"node_types": {"chat": {"ctx": 4096, "slots": slots, "threads": 1, "memory": "16GiB"}}},
        "load_balancer": {"strategy": strategy},
    }
    with tempfile.TemporaryDirectory(prefix="llambo-bench-") as home:
        os.environ["LLAMBO_HOME"] = home
        async with Cluster(config.Settings.model_validate(settings)) as cluster:
            await cluster.spawn(nodes, node_type="chat", model=str(chat_models.model(model)))
            yield cluster


async def hold(cluster: Cluster, seed: int) -> list[Turn]:
    """All chats of that seed, from the first question to the last answer."""
    chance = random.Random(seed)
    vocabulary = chat_models.words_of(chat_models.SHAPES["chat"])

    def text(words: random.Random, tokens: int) -> str:
        return "".join(" " + words.choice(vocabulary) for _ in range(tokens))

    system = Message("system", text(chance, SYSTEM_TOKENS))
    waiting = [_Chat(random.Random(f"{seed} {number}"), [system]) for number in range(SESSIONS)]
    turns: list[Turn] = []

    async def person() -> None:
        """Takes up one chat after the other, in no order: people think for different times."""
        while waiting:
            chat = waiting.pop(chance.randrange(len(waiting)))
            chat.messages.append(Message("user", text(chat.words, chat.words.randint(*QUESTION_TOKENS))))
            sampling = Sampling(max_tokens=chat.words.randint(*ANSWER_TOKENS), temperature=0)
            answer = ""
            async for event in cluster.generate(GenerateRequest(messages=tuple(chat.messages), sampling=sampling)):
                if isinstance(event, Done):
                    done = event
                elif isinstance(event, TokenEvent):
                    answer += event.text
            chat.messages.append(Message("assistant", answer))
            chat.turns += 1
            turns.append(Turn(chat.turns, done.node, done.ttft_ms, done.prompt_tokens, done.cached_tokens))
            if chat.turns < TURNS:
                waiting.append(chat)

    await asyncio.gather(*(person() for _ in range(AT_ONCE)))
    return turns


def cached_share(turns: Sequence[Turn]) -> float:
    """The share of the prompts' tokens that were in caches."""
    return sum(turn.cached_tokens for turn in turns) / sum(turn.prompt_tokens for turn in turns)


def median_ms(turns: Sequence[Turn]) -> float:
    """The median time to the first token."""
    return statistics.median(turn.ttft_ms for turn in turns)


async def _ideal_share(seed: int) -> float:
    """The cached share of one node where every chat has a slot for itself.

    It is a matter of tokens alone, so it is measured with a smaller model of the same words.
    """
    async with _cluster("chat-tiny", "prefix-affinity", 1, SESSIONS) as cluster:
        return cached_share(await hold(cluster, seed))


async def _held(strategy: str, seed: int) -> list[Turn]:
    async with _cluster("chat", strategy, NODES, SLOTS) as cluster:
        return await hold(cluster, seed)


def _tell(report: Report, what: str, turns: Sequence[Turn]) -> None:
    """One strategy's round: how long the first token took, turn by turn, and why."""
    by_turn = [[turn for turn in turns if turn.number == number] for number in range(1, TURNS + 1)]
    computed = [statistics.median(turn.prompt_tokens - turn.cached_tokens for turn in each) for each in by_turn]
    spread = [percentile([turn.ttft_ms for turn in turns], part) for part in (0.1, 0.5, 0.9, 0.99)]
    report.add(f"{what}: time to first token, 10, 50, 90, 99 %", ", ".join(f"{each:.0f}" for each in spread) + " ms")
    report.add(f"{what}: the same, median by turn", ", ".join(f"{median_ms(each):.0f}" for each in by_turn) + " ms")
    report.add(f"{what}: tokens computed, median by turn", ", ".join(f"{each:.0f}" for each in computed))
    report.add(f"{what}: cached share", f"{cached_share(turns):.3f}")
    report.add(f"{what}: turns by node", ", ".join(str(n) for _, n in Counter(t.node for t in turns).most_common()))


async def _compare(report: Report) -> None:
    shares: list[float] = []
    ratios: list[float] = []
    for seed in range(1, ROUNDS + 1):
        ideal = await _ideal_share(seed)
        warm = await _held("prefix-affinity", seed)
        _tell(report, f"chats, round {seed}, prefix-affinity", warm)
        cold = await _held("round-robin", seed)
        _tell(report, f"chats, round {seed}, round-robin", cold)
        shares.append(cached_share(warm) / ideal)
        ratios.append(median_ms(warm) / median_ms(cold))
    what = f"{SESSIONS} chats of {TURNS} turns on {NODES} nodes"
    report.add(
        f"{what}: cached share against one node with {SESSIONS} slots, by round",
        ", ".join(f"{share:.3f}" for share in shares),
        ">= 0.90",
    )
    report.add(
        f"{what}: median time to first token against round-robin, by round",
        ", ".join(f"{ratio:.2f}" for ratio in ratios),
        "<= 0.40",
    )


def chats(report: Report) -> None:
    """Multi-turn chats: what routing by prefix is worth."""
    asyncio.run(_compare(report))
