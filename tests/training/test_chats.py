"""The paraphrase generator and the chats made with it."""

from __future__ import annotations

import random
from itertools import islice

from training import chats, facts, heldout, offtopic, phrases, wording

TOPICS = facts.load()
SHARED_WORDS = 0.77
WITHIN_REACH = 4
"""So many held-out wordings does a generator of this corpus make in 94,000 questions; no chat to train on has them."""


def test_choices_are_expanded_from_the_inside_out() -> None:
    found = {wording.expand("[a|b [c|d]|] e", random.Random(seed)) for seed in range(99)}
    assert found == {"a e", "b c e", "b d e", "e"}


def test_varying_leaves_code_paths_and_numbers_as_they_are() -> None:
    for seed in range(300):
        rng = random.Random(seed)
        assert "/n/llambo/ctl" in wording._synonyms("show me `start` and /n/llambo/ctl {n}", rng)


def test_the_same_seed_gives_the_same_chats() -> None:
    first = list(islice(chats.ChatMaker(TOPICS, 5).stream(), 50))
    assert first == list(islice(chats.ChatMaker(TOPICS, 5).stream(), 50))
    assert first != list(islice(chats.ChatMaker(TOPICS, 6).stream(), 50))


def test_chats_alternate_between_user_and_assistant_and_leave_no_slot_open() -> None:
    for chat in islice(chats.ChatMaker(TOPICS, 7).stream(), 1500):
        roles = [role for role, _ in chat if role != "system"]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert not any("{n}" in text or "{x}" in text or "{t}" in text for _, text in chat)


def test_a_number_in_the_question_is_the_number_in_the_answer() -> None:
    maker = chats.ChatMaker(TOPICS, 8)
    fact = TOPICS["scale"].facts["set"]
    for number in ("2", "7", "50"):
        text, _, answer = maker._numbered("scale to {n}", fact)
        found = text.rsplit(" ", 1)[1]
        assert f"llamboctl scale {found}" in answer, number


def test_a_follow_up_may_put_a_pronoun_in_place_of_the_topics_name() -> None:
    maker = chats.ChatMaker(TOPICS, 10)
    found = [maker._pointed(TOPICS["bridge"].facts["what"]) for _ in range(400)]
    texts = [pointed[0].lower() for pointed in found if pointed is not None]
    assert len(texts) > 50
    assert sum("bridge" in text for text in texts) < len(texts) / 5


def test_a_chat_goes_on_in_as_many_ways_as_asked_for() -> None:
    maker = chats.ChatMaker(TOPICS, 12)
    maker.branches = 5
    fork = maker.fork(2)
    assert [role for role, _ in fork.stem if role != "system"] == ["user", "assistant"] * 2
    assert len(fork.branches) == 5
    assert all([role for role, _ in branch] == ["user", "assistant"] for branch in fork.branches)


def test_the_same_follow_up_is_answered_by_what_the_turn_before_was_about() -> None:
    maker = chats.ChatMaker(TOPICS, 13)
    answers: dict[str, set[str]] = {}
    for topic in ("node", "bridge", "daemon", "limbot", "dish"):
        for _ in range(1500):
            text, _, answer = maker.next_turn(TOPICS[topic].facts["what"])
            answers.setdefault(heldout.normal(text), set()).add(answer)
    assert max(len(different) for different in answers.values()) >= 3
    assert sum(len(different) >= 2 for different in answers.values()) >= 40


def test_a_comparison_is_asked_for_in_either_order() -> None:
    asked = {wording.versus("one", "two", random.Random(seed)) for seed in range(300)}
    assert any(text.index("one") < text.index("two") for text in asked)
    assert any(text.index("one") > text.index("two") for text in asked)
    assert not any("{" in text or "[" in text for text in asked)


def test_groups_of_words_are_exchanged_only_as_a_whole() -> None:
    texts = {wording._rephrase("what is the graphics card for", random.Random(seed)) for seed in range(99)}
    assert "what is the gpu for" in texts
    assert wording._rephrase("/n/llambo/a node-b", random.Random(1)) == "/n/llambo/a node-b"


def test_prompts_of_other_subjects_are_never_empty_and_very_different() -> None:
    rng = random.Random(3)
    prompts = [offtopic.prompt(rng) for _ in range(2000)]
    assert all(prompt.strip() for prompt in prompts)
    assert len(set(prompts)) > 1800


def test_hardly_a_held_out_wording_is_within_the_generator_s_reach() -> None:
    held_out = {heldout.normal(case.turns[0]) for case in heldout.questions() if len(case.turns) == 1}
    maker = chats.ChatMaker(TOPICS, 9)
    made = {heldout.normal(maker.question(fact)) for fact in maker.facts for _ in range(250)}
    assert len(held_out & made) <= WITHIN_REACH


def test_no_chat_to_train_on_holds_a_held_out_wording() -> None:
    held_out = heldout.wordings()
    assert heldout.normal("what is automatic failover?") in held_out, "this test needs one that the generator can make"
    maker = chats.ChatMaker(TOPICS, 14)
    failover = TOPICS["failover"].facts["what"]
    maker.facts, maker._weights = [failover], [1.0]
    turns = [maker.next_turn(None)[0] for _ in range(3000)]
    assert any("automatic failover" in text.lower() for text in turns)
    assert not held_out & {heldout.normal(text) for text in turns}


def test_no_held_out_follow_up_is_written_in_the_corpus() -> None:
    held_out = {
        heldout.normal(case.turns[-1]) for name in ("followups", "followups-late") for case in heldout.cases(name)
    }
    patterns = [pattern for frames in phrases.FOLLOW_UP.values() for pattern in frames]
    for fact in (fact for topic in TOPICS.values() for fact in topic.facts.values()):
        patterns += [*fact.follow_ups, *(pattern for _, pattern in fact.elsewhere)]
    written = {heldout.normal(spelled) for pattern in patterns for spelled in wording.spellings(pattern.lstrip("~ "))}
    assert not held_out & written


def test_no_held_out_question_shares_three_quarters_of_its_words_with_a_wording() -> None:
    known: dict[str, set[frozenset[str]]] = {}
    for topic in TOPICS.values():
        for fact in topic.facts.values():
            for pattern in fact.questions + fact.actions:
                for spelled in wording.spellings(pattern):
                    words = heldout.content(spelled)
                    for word in words:
                        known.setdefault(word, set()).add(words)
    for case in [*heldout.questions(), *heldout.cases("roundabout")]:
        words = heldout.content(case.turns[0])
        like = {other for word in words for other in known.get(word, ())}
        assert max((len(words & other) / len(words | other) for other in like), default=0) < SHARED_WORDS, case


def test_held_out_off_topic_prompts_are_not_in_the_lists() -> None:
    lists = {heldout.normal(entry) for entries in offtopic.lists().values() for entry in entries}
    held_out = {heldout.normal(prompt) for prompt in heldout.prompts("offtopic")} - {""}
    assert not held_out & lists


def test_the_held_out_set_is_as_large_as_the_figures_need() -> None:
    assert len(heldout.questions()) >= 150
    assert len(heldout.prompts("offtopic")) >= 60
    assert len(heldout.cases("followups")) >= 40


def test_every_held_out_fact_is_in_some_answer_of_the_corpus() -> None:
    answers = [fact.answer for topic in TOPICS.values() for fact in topic.facts.values()]
    answers += [answer.replace("{n}", str(n)) for answer in answers for n in range(2, 14)]
    names = (*heldout.FIGURES, "dev", "dev-followups")
    for case in [case for name in names for case in heldout.cases(name)]:
        assert any(case.passes(answer) for answer in answers), case


def test_a_refusal_passes_for_no_question() -> None:
    cases = [*heldout.questions(), *heldout.cases("followups")]
    assert not any(case.passes(text) for case in cases for text in (chats.REFUSAL, chats.REFUSAL_LANGUAGE))
