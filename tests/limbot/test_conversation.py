"""What a model is sent: the prefix stays from turn to turn, trims are large, nothing over the budget, nothing lost."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.core.types import Message
from llambo.limbot.conversation import MAX_ENTRIES, SUMMARY_HEADING, Conversation, Entry, budget_for

TURNS = st.lists(st.tuples(st.integers(1, 60), st.integers(1, 200)), min_size=1, max_size=90)


def chat(turns: list[tuple[int, int]], budget: int, system: str = "") -> list[Conversation]:
    """The conversation as each question was sent, for an engine that counts exactly."""
    conversation = Conversation(system)
    sent = []
    for question, answer in turns:
        asked = conversation.asked("q" * question, tokens=question).trimmed(budget)
        sent.append(asked)
        prompt_tokens = 10 + len(system) + sum(entry.tokens for entry in asked.kept)
        conversation = asked.answered("a" * answer, tokens=answer, prompt_tokens=prompt_tokens)
    return sent


@given(TURNS)
def test_what_is_sent_begins_with_what_was_sent_before_except_at_a_trim(turns: list[tuple[int, int]]) -> None:
    sent = chat(turns, 1000, "system")
    for before, after in itertools.pairwise(sent):
        if after.start == before.start:
            assert after.messages()[: len(before.messages())] == before.messages()


@given(TURNS)
def test_a_trim_takes_at_least_a_third_so_that_they_are_rare(turns: list[tuple[int, int]]) -> None:
    sent = chat(turns, 1000)
    for before, after in itertools.pairwise(sent):
        if after.start != before.start:
            assert after.size <= 500 or len(after.kept) == 1
            assert len(after.kept) <= MAX_ENTRIES // 2 + 1


@given(TURNS)
def test_nothing_over_the_budget_or_50_entries_is_sent(turns: list[tuple[int, int]]) -> None:
    for conversation in chat(turns, 1000, "pinned"):
        assert len(conversation.kept) <= MAX_ENTRIES
        assert 10 + 6 + sum(entry.tokens for entry in conversation.kept) <= 1000
        assert conversation.messages()[0] == Message("system", "pinned")
        assert conversation.kept[0].role == "user"
        assert conversation.kept[-1].role == "user"


def test_the_engines_count_becomes_the_questions_and_what_it_cannot_be_the_pins() -> None:
    first = Conversation().asked("What is a node?").answered("A process.", tokens=3, prompt_tokens=13)
    assert first.size == 16
    second = first.asked("And a slot?").answered("A sequence.", tokens=4, prompt_tokens=27)
    assert second.size == 31
    assert [entry.tokens for entry in second.entries][1::2] == [3, 4]
    far_off = Conversation().asked("hi").answered("yes", tokens=1, prompt_tokens=500)
    assert far_off.size == 501


def test_a_question_without_an_answer_is_not_sent_again() -> None:
    conversation = Conversation().asked("one").asked("two")
    assert [message.content for message in conversation.messages()] == ["two"]
    conversation = Conversation().asked("one").answered("").asked("two")
    assert [message.content for message in conversation.messages()] == ["two"]
    conversation = Conversation().asked("one").answered("half", interrupted=True).asked("two")
    assert [message.content for message in conversation.messages()] == ["one", "half", "two"]


def long(count: int) -> Conversation:
    entries = tuple(Entry("user" if n % 2 == 0 else "assistant", f"text {n}", 10) for n in range(count))
    return Conversation("sys", entries, pin_tokens=5)


def test_a_summary_is_wanted_before_the_trim_and_sent_from_the_trim_on() -> None:
    near = long(38)
    upto = near.to_summarise(500)
    assert 0 < upto < 38
    prompt = near.summary_request(upto, 500)
    assert f"text {upto - 1}" in prompt
    assert f"text {upto}" not in prompt
    waiting = near.with_summary("they spoke of text", upto)
    assert waiting.messages() == near.messages(), "the prefix stays"
    assert waiting.to_summarise(500) == 0
    after = waiting.asked("x" * 300, tokens=130).trimmed(500)
    assert after.start == upto, "no more than the summary covers"
    assert after.to_summarise(500) == 0
    assert after.messages()[0].content == f"sys\n\n{SUMMARY_HEADING}they spoke of text"


def test_a_summary_that_comes_after_the_trim_is_sent_at_once() -> None:
    trimmed = long(40).asked("x", tokens=200).trimmed(500)
    upto = trimmed.to_summarise(500)
    assert upto == trimmed.start > 0
    with_summary = trimmed.with_summary("so they spoke", upto)
    assert with_summary.messages()[0].content.endswith("so they spoke")
    assert with_summary.to_summarise(500) == 0
    assert "Before that: so they spoke" in Conversation.summary_request(
        with_summary.asked("more", tokens=9).answered("yes", tokens=300), len(with_summary.entries) + 1, 600
    )


def test_a_summary_request_itself_fits_the_budget() -> None:
    entries = tuple(Entry("user" if n % 2 == 0 else "assistant", "w " * 100, 100) for n in range(60))
    conversation = Conversation("", entries, 50)
    assert len(conversation.summary_request(50, 1000)) < 200 * 10


@pytest.mark.parametrize(
    ("ctx", "max_tokens", "budget"), [(2048, None, 1536), (2048, 100, 1948), (2048, 5000, 1024), (0, None, 0)]
)
def test_the_budget_leaves_room_for_the_answer(ctx: int, max_tokens: int | None, budget: int) -> None:
    assert budget_for(ctx, max_tokens) == budget


def test_undo_takes_the_last_question_and_its_answer() -> None:
    conversation = Conversation().asked("a").answered("b").asked("c").answered("d")
    assert [entry.text for entry in conversation.undone().entries] == ["a", "b"]
    assert Conversation().undone() == Conversation()


def test_a_summary_for_people_alone_is_not_sent() -> None:
    conversation = replace(long(40), sends_summary=False).asked("x", tokens=200).trimmed(500)
    upto = conversation.to_summarise(500)
    told = conversation.with_summary(conversation.extract(upto), upto)
    assert told.summary.startswith("text 0 · text 2 · text 4")
    assert told.messages() == conversation.messages()
