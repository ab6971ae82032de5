"""Owns the byte-level BPE: trained on the corpus, with GPT-2's pre-tokenizer, which llama.cpp knows."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from training import chats, offtopic, wording
from training.facts import Topic
from training.settings import SPECIAL_TOKENS, ModelShape, TrainPlan

TOKENIZER_NAME = "tokenizer.json"


def texts(topics: dict[str, Topic], plan: TrainPlan) -> list[str]:
    """What the merges are learned from: answers often, clean wordings, the words of other subjects."""
    maker = chats.ChatMaker(topics, plan.seed + 1)
    rng = random.Random(plan.seed + 2)
    found: list[str] = []
    for fact in maker.facts:
        found += [fact.answer] * 24
        found += [maker.question(fact, clean=True) for _ in range(24)]
        found += [maker.question(fact) for _ in range(12)]
    found += [chats.REFUSAL, chats.REFUSAL_LANGUAGE, chats.REFUSAL_EMPTY] * 40
    for entries in offtopic.lists().values():
        found += [wording.expand(entry, rng) for entry in entries]
    return found


def train(topics: dict[str, Topic], shape: ModelShape, plan: TrainPlan) -> Tokenizer:
    """A tokenizer of exactly `shape.vocab` tokens, the special ones first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab,
        special_tokens=[AddedToken(text, special=True) for text in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(topics, plan), trainer)
    if tokenizer.get_vocab_size() != shape.vocab:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {shape.vocab}")
    return tokenizer


def load(folder: Path) -> Tokenizer:
    """The tokenizer that `train` wrote into `folder`."""
    return Tokenizer.from_file(str(folder / TOKENIZER_NAME))
