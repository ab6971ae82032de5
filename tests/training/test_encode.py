"""Chats as token sequences: what is a target, and how a chat goes on in several ways."""

from __future__ import annotations

from itertools import islice

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from training import encode, facts
from training.chats import NUMBERS, REFUSALS, Chat, ChatMaker, Fork
from training.encode import IGNORED, Encoder, Sequence
from training.settings import SPECIAL_TOKENS, Leg, ModelShape, TrainPlan

MORE = 2


def _tokenizer() -> Tokenizer:
    """Every byte is a token: slow to read, but whole."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet, 3)}, []))
    made.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL_TOKENS])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.fixture(scope="module")
def maker() -> ChatMaker:
    maker = ChatMaker(facts.load(), 21)
    maker.branches = 4
    return maker


@pytest.fixture(scope="module")
def encoder(maker: ChatMaker) -> Encoder:
    encoder = Encoder(_tokenizer())
    encoder.learn_answers([fact.answer.replace("{n}", str(n)) for fact in maker.facts for n in NUMBERS] + REFUSALS)
    return encoder


def _way(sequence: Sequence, number: int) -> tuple[list[int], list[int], list[int]]:
    """Ids, targets and positions of the stem and branch `number`."""
    kept = [index for index, part in enumerate(sequence.parts) if part in {0, number}]
    return (
        [sequence.ids[index] for index in kept],
        [sequence.targets[index] for index in kept],
        [sequence.positions[index] for index in kept],
    )


def test_each_branch_reads_as_if_it_were_the_only_one(maker: ChatMaker, encoder: Encoder) -> None:
    for _ in range(20):
        fork = maker.fork(1)
        whole = encoder.fork(fork, None)
        stem = whole.parts.count(0)
        for number, branch in enumerate(fork.branches, 1):
            alone = encoder.chat(fork.stem + branch, 10**6)
            ids, targets, positions = _way(whole, number)
            assert ids == alone.ids
            assert positions == list(range(len(ids)))
            assert targets[stem:] == alone.targets[stem:]


def test_a_short_branch_ends_soon_after_its_answer_differs_from_all_others(encoder: Encoder) -> None:
    stem: Chat = [("user", "hi"), ("assistant", REFUSALS[0])]
    branch: Chat = [("user", "what is dish?"), ("assistant", facts.load()["dish"].facts["what"].answer)]
    whole = encoder.fork(Fork(stem, [branch]), MORE)
    asked = [index for index, part in enumerate(whole.parts) if part == 1 and whole.targets[index] != IGNORED]
    assert len(asked) < len(branch[1][1]) / 2
    assert asked[-1] == len(whole.ids) - 1
    answered = [index for index, part in enumerate(whole.parts) if part == 0 and whole.targets[index] != IGNORED]
    assert 0 < len(answered) < len(REFUSALS[0])


def test_a_number_that_an_answer_repeats_is_within_the_part_that_is_learned(encoder: Encoder) -> None:
    answer = facts.load()["scale"].facts["set"].answer.replace("{n}", "7")
    chat: Chat = [("user", "to 7 nodes"), ("assistant", answer)]
    # The token after the last one that is kept is a target still.
    assert encoder.decided(chat, 0) >= len(encoder.prompt(chat[:1])) + answer.index("7")


def test_batches_hold_what_fits_and_never_mix_chats_with_branches_and_without(
    maker: ChatMaker, encoder: Encoder
) -> None:
    plan, kinds = TrainPlan(batch_tokens=6000, pool_chats=40), set()
    for batch in islice(encode.batches(maker, encoder, ModelShape(), plan, Leg(0, chat_share=0.5)), 40):
        longest = max(len(sequence.ids) for sequence in batch)
        assert len(batch) == 1 or longest * len(batch) <= plan.batch_tokens
        assert len({bool(sequence.parts) for sequence in batch}) == 1
        kinds.add(bool(batch[0].parts))
        assert all(any(target != IGNORED for target in sequence.targets) for sequence in batch)
    assert kinds == {False, True}
