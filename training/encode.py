"""Owns how chats become token sequences with targets, and sequences become batches."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import Tokenizer

from training.chats import NUMBERS, REFUSALS, Chat, ChatMaker
from training.settings import TURN_END, TURN_START, Cycle, ModelShape, TrainPlan

IGNORED = -100


SURE_WEIGHT = 0.2


@dataclass(slots=True)
class Sequence:
    """Token ids and, for each, the next id where it is the assistant's, else IGNORED.

    `weights` tells how much each target counts.
    """

    ids: list[int]
    targets: list[int]
    weights: list[float]


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
        ids: list[int] = []
        target: list[bool] = []
        weights: list[float] = []
        for role, text in chat:
            head = [self._start, *self.text(f"{role}\n")]
            body = [*self.text(text), self._end]
            ids += [*head, *body, *self.text("\n")]
            target += [False] * len(head) + [role == "assistant"] * len(body) + [False]
            known = self._weights(body) if role == "assistant" else [0.0] * len(body)
            weights += [0.0] * len(head) + known + [0.0]
        targets = [i if wanted else IGNORED for i, wanted in zip(ids, target, strict=True)]
        return Sequence(ids[:-1][:limit], targets[1:][:limit], weights[1:][:limit])

    def decided(self, chat: Chat, more: int) -> int:
        """The length at which a chat is cut `more` tokens after its last answer differs from every other."""
        ids = [*self.text(chat[-1][1]), self._end]
        last = 0
        for index in range(len(ids)):
            nexts = self._nexts.get(tuple(ids[:index]))
            if nexts is None:
                break
            if len(nexts) > 1:
                last = index
        return len(self.prompt(chat[:-1])) + last + more

    def prompt(self, chat: Chat) -> list[int]:
        """The chat so far and the head of the assistant's next turn."""
        ids: list[int] = []
        for role, text in chat:
            ids += [self._start, *self.text(f"{role}\n"), *self.text(text), self._end]
            ids += self.text("\n")
        return [*ids, self._start, *self.text("assistant\n")]


def batches(
    maker: ChatMaker, encoder: Encoder, shape: ModelShape, plan: TrainPlan, cycle: Cycle
) -> Iterator[list[Sequence]]:
    """Batches without end, each of sequences of like length with `batch_tokens` at most."""
    rng = random.Random(plan.seed + 3)
    numbers = NUMBERS if cycle.numbers else (4,)
    answers = [fact.answer.replace("{n}", str(number)) for fact in maker.facts for number in numbers]
    encoder.learn_answers([*answers, *REFUSALS])
    maker.chat_share = cycle.chat_share
    chats = maker.stream()
    while True:
        pool = []
        for _ in range(plan.pool_chats):
            chat = next(chats)
            short = len(chat) < 10 and rng.random() < plan.short_share
            limit = encoder.decided(chat, plan.short_tokens) if short else shape.context
            sequence = encoder.chat(chat, min(limit, shape.context))
            if any(target != IGNORED for target in sequence.targets):
                pool.append(sequence)
        pool.sort(key=lambda sequence: len(sequence.ids))
        groups: list[list[Sequence]] = [[]]
        for sequence in pool:
            if len(sequence.ids) * (len(groups[-1]) + 1) > plan.batch_tokens and groups[-1]:
                groups.append([])
            groups[-1].append(sequence)
        rng.shuffle(groups)
        yield from groups
