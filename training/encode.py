"""Owns how chats become token sequences with targets, and sequences become batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from training.chats import NUMBERS, REFUSALS, Chat, ChatMaker, Fork
from training.settings import TURN_END, TURN_START, Leg, ModelShape, TrainPlan

IGNORED = -100
SURE_WEIGHT = 0.2


@dataclass(slots=True)
class Sequence:
    """Token ids and, for each, the next id where it is the assistant's, else IGNORED.

    `weights` tells how much each target counts. Where a chat goes on in several ways, `parts` tells
    which of them a token belongs to (0 for the chat before them, 1, 2, … after it) and `positions`
    where it stands in its own; both are empty where there is one way only.
    """

    ids: list[int]
    targets: list[int]
    weights: list[float]
    parts: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)


class Encoder:
    """Applies the chat template token by token, as llama.cpp does with special tokens parsed."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._start, self._end = vocabulary[TURN_START], vocabulary[TURN_END]
        self._cache: dict[str, list[int]] = {}
        self._nexts: dict[tuple[int, ...], set[int]] = {}

    def text(self, text: str) -> list[int]:
        """Ids of `text` without special tokens; short texts are remembered."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
            if len(self._cache) < 20_000:
                self._cache[text] = ids
        return ids

    def learn_answers(self, answers: list[str]) -> None:
        """Notes where answers part, so that the tokens that choose an answer count in full."""
        for answer in answers:
            ids = [*self.text(answer), self._end]
            for index, token in enumerate(ids):
                self._nexts.setdefault(tuple(ids[:index]), set()).add(token)

    def _weights(self, ids: list[int]) -> list[float]:
        """1 for each token that is a choice among known answers, SURE_WEIGHT for the others."""
        return [1.0 if len(self._nexts.get(tuple(ids[:index]), (0, 0))) > 1 else SURE_WEIGHT
                for index in range(len(ids))]  # fmt: skip

    def chat(self, chat: Chat, limit: int) -> Sequence:
        """The whole chat with the assistant's words and end marks as targets, cut at `limit`."""
        whole = self._marked(chat, None)
        return Sequence(whole.ids[:-1][:limit], whole.targets[:-1][:limit], whole.weights[:-1][:limit])

    def fork(self, fork: Fork, more: int | None) -> Sequence:
        """The stem, and after it each branch as if it were the only one.

        With `more`, each answer is a target only up to `more` tokens after it differs from every
        other, and the branches end there.
        """
        whole = self._marked(fork.stem, more)
        stem = len(whole.ids)
        whole.parts, whole.positions = [0] * stem, list(range(stem))
        for number, branch in enumerate(fork.branches, 1):
            marked = self._marked(branch, more)
            size = len(marked.ids) - 1 if more is None else self.decided(branch, more)
            whole.ids += marked.ids[:size]
            whole.targets += marked.targets[:size]
            whole.weights += marked.weights[:size]
            whole.parts += [number] * size
            whole.positions += range(stem, stem + size)
        return whole

    def _marked(self, chat: Chat, more: int | None) -> Sequence:
        """Every token of `chat`, with targets in answers, or in as much of each as `decided` keeps."""
        ids: list[int] = []
        target: list[bool] = []
        weights: list[float] = []
        for role, text in chat:
            head = [self._start, *self.text(f"{role}\n")]
            body = [*self.text(text), self._end]
            ids += [*head, *body, *self.text("\n")]
            kept = 0
            if role == "assistant":
                kept = len(body) if more is None else min(len(body), self._last_choice(text) + more + 1)
            target += [False] * len(head) + [True] * kept + [False] * (len(body) - kept + 1)
            known = self._weights(body) if role == "assistant" else [0.0] * len(body)
            weights += [0.0] * len(head) + known + [0.0]
        targets = [i if wanted else IGNORED for i, wanted in zip(ids, target, strict=True)]
        return Sequence(ids, [*targets[1:], IGNORED], [*weights[1:], 0.0])

    def _last_choice(self, answer: str) -> int:
        """The index of the token from which on `answer` differs from every other."""
        ids = [*self.text(answer), self._end]
        last = 0
        for index in range(len(ids)):
            nexts = self._nexts.get(tuple(ids[:index]))
            if nexts is None:
                break
            if len(nexts) > 1:
                last = index
        return last

    def decided(self, chat: Chat, more: int) -> int:
        """The length at which a chat is cut `more` tokens after its last answer differs from every other."""
        return len(self.prompt(chat[:-1])) + self._last_choice(chat[-1][1]) + more

    def prompt(self, chat: Chat) -> list[int]:
        """The chat so far and the head of the assistant's next turn."""
        ids: list[int] = []
        for role, text in chat:
            ids += [self._start, *self.text(f"{role}\n"), *self.text(text), self._end]
            ids += self.text("\n")
        return [*ids, self._start, *self.text("assistant\n")]


def batches(
    maker: ChatMaker, encoder: Encoder, shape: ModelShape, plan: TrainPlan, leg: Leg
) -> Iterator[list[Sequence]]:
    """Batches without end, each of sequences of like length with `batch_tokens` at most.

    A batch holds either chats that go on in several ways or chats that do not.
    """
    rng = random.Random(plan.seed + 3)
    numbers = NUMBERS if leg.numbers else (4,)
    answers = [fact.answer.replace("{n}", str(number)) for fact in maker.facts for number in numbers]
    encoder.learn_answers([*answers, *REFUSALS])
    maker.chat_share, maker.branches = leg.chat_share, plan.branches
    maker.long_prompts, maker.long_words = leg.long_prompts, leg.long_words
    chats = maker.forks()
    while True:
        pool = [_sequence(next(chats), encoder, shape, plan, rng) for _ in range(plan.pool_chats)]
        groups: list[list[Sequence]] = []
        for forked in (False, True):
            same = [s for s in pool if bool(s.parts) == forked and any(target != IGNORED for target in s.targets)]
            groups += _groups(same, plan.batch_tokens)
        rng.shuffle(groups)
        yield from groups


def _sequence(fork: Fork, encoder: Encoder, shape: ModelShape, plan: TrainPlan, rng: random.Random) -> Sequence:
    short = len(fork.stem) < 10 and rng.random() < plan.short_share
    if fork.branches:
        return encoder.fork(fork, plan.short_tokens if short else None)
    limit = encoder.decided(fork.stem, plan.short_tokens) if short else shape.context
    return encoder.chat(fork.stem, min(limit, shape.context))


def _groups(pool: list[Sequence], batch_tokens: int) -> list[list[Sequence]]:
    groups: list[list[Sequence]] = []
    for sequence in sorted(pool, key=lambda sequence: len(sequence.ids)):
        if not groups or len(sequence.ids) * (len(groups[-1]) + 1) > batch_tokens:
            groups.append([])
        groups[-1].append(sequence)
    return groups
