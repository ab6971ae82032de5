"""The corpus files: their grammar, and that what they say agrees with what Llambo is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training import facts, phrases

TOPICS = facts.load()
FACTS = [fact for topic in TOPICS.values() for fact in topic.facts.values()]

LLAMBOCTL = frozenset(
    [
        "init",
        "spawn",
        "attach",
        "detach",
        "scale",
        "drain",
        "kill",
        "nodes",
        "status",
        "health",
        "top",
        "balancer",
        "infer",
        "pull",
        "models",
        "checkpoint",
        "metrics",
        "config",
        "bridge",
        "limbot",
        "dish",
        "mount",
        "logs",
        "token",
        "shutdown",
    ]
)
FLAGS = frozenset(
    [
        "--launcher",
        "--config",
        "--foreground",
        "--count",
        "--type",
        "--model",
        "--slots",
        "--api-key-env",
        "--json",
        "--strategy",
        "--max-tokens",
        "--temperature",
        "--top-p",
        "--seed",
        "--fusion",
        "--nodes",
        "--show",
        "--save",
        "--restore",
        "--export",
        "--validate",
        "--edit",
        "--help",
        "--version",
        "--no-color",
        "--raw",
        "--raw-prompt",
        "--socket-path",
    ]
)
SLASH = frozenset(
    [
        "help",
        "history",
        "clear",
        "status",
        "exit",
        "quit",
        "system",
        "model",
        "set",
        "save",
        "load",
        "sessions",
        "search",
        "export",
        "retry",
        "undo",
        "copy",
        "multi",
    ]
)
ENVIRONMENT = frozenset(
    [
        "LLAMBO_HOME",
        "LLAMBO_RUNTIME_DIR",
        "LLAMBO_BRIDGE_SOCKET",
        "LLAMBO_GATEWAY_LISTEN",
        "LLAMBO_LOAD_BALANCER_STRATEGY",
        "LLAMBO_",
    ]
)


def test_there_are_some_hundred_facts_each_with_several_wordings() -> None:
    assert len(FACTS) >= 300
    assert sum(fact.wordings for fact in FACTS) >= 10 * len(FACTS)


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_every_fact_can_be_asked_for_and_its_answer_is_short(fact: facts.Fact) -> None:
    names = TOPICS[fact.topic].names
    assert fact.questions or fact.actions or fact.pairs or (names and fact.kind in phrases.ABOUT)
    assert 10 <= len(fact.answer) <= 340, fact.answer
    assert fact.answer[-1] in ".`?!", fact.answer
    assert fact.answer.count("`") % 2 == 0


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: fact.name)
def test_answers_name_only_commands_flags_and_variables_that_exist(fact: facts.Fact) -> None:
    assert set(re.findall(r"llamboctl ([a-z]+)", fact.answer)) <= LLAMBOCTL
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", fact.answer)) <= FLAGS
    assert set(re.findall(r"LLAMBO_[A-Z_]*", fact.answer)) <= ENVIRONMENT


def test_answers_about_the_chat_name_only_its_slash_commands() -> None:
    for fact in TOPICS["limbot"].facts.values():
        assert set(re.findall(r"(?<![\w/.])/([a-z]+)\b(?!/)", fact.answer)) <= SLASH | {"path"}, fact.answer


def test_no_pattern_asks_for_two_facts_of_one_kind_of_wording() -> None:
    seen: dict[str, str] = {}
    for fact in FACTS:
        for pattern in {*fact.questions, *(f"~ {action}" for action in fact.actions)}:
            assert seen.setdefault(pattern, fact.name) == fact.name, pattern


def test_the_first_question_of_a_newcomer_is_asked_more_often_than_others() -> None:
    assert TOPICS["distributed"].facts["what"].weight > 1


def test_a_wording_before_any_fact_is_an_error_that_names_the_line() -> None:
    with pytest.raises(facts.CorpusError, match=r"x\.txt:2: a wording needs a fact"):
        facts.parse("@ a: b\n? what", "x.txt")


def test_a_second_fact_of_one_kind_is_an_error() -> None:
    with pytest.raises(facts.CorpusError, match="has 'what' already"):
        facts.parse("@ a: b\nwhat: One.\nwhat: Two.")


def test_wordings_can_be_added_to_an_earlier_fact_and_to_no_other() -> None:
    topics = facts.parse("@ a: b\nwhat: One.\n= a.what\n? x [y|z] | w\n> v\n! 2")
    assert topics["a"].facts["what"].questions == ["x [y|z]", "w"]
    assert topics["a"].facts["what"].follow_ups == ["v"]
    assert topics["a"].facts["what"].weight == 2
    with pytest.raises(facts.CorpusError, match=r"there is no fact 'a\.why'"):
        facts.parse("@ a: b\nwhat: One.\n= a.why\n? x")


def test_a_follow_up_may_belong_to_a_turn_about_another_topic(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("@ a: b\nwhat: One.\n+ c: v | w\n@ c: d\nwhat: Two.", encoding="utf-8")
    topics = facts.load(tmp_path)
    assert topics["c"].neighbours == [("v", topics["a"].facts["what"]), ("w", topics["a"].facts["what"])]
    assert not topics["a"].neighbours


def test_a_follow_up_to_a_topic_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("@ a: b\nwhat: One.\n+ c: v", encoding="utf-8")
    with pytest.raises(facts.CorpusError, match=r"a\.what: there is no topic 'c' to follow up"):
        facts.load(tmp_path)
    with pytest.raises(facts.CorpusError, match=r"'\+' needs 'topic: follow-up'"):
        facts.parse("@ a: b\nwhat: One.\n+ c")


def test_two_compared_things_need_a_slash_between_them() -> None:
    assert facts.parse("@ a: b\nwhat: One.\n% x / y")["a"].facts["what"].pairs == [("x", "y")]
    with pytest.raises(facts.CorpusError, match=r"'%' needs two things"):
        facts.parse("@ a: b\nwhat: One.\n% x and y")


def test_indented_lines_continue_the_line_before() -> None:
    assert facts.parse("@ a: b\nwhat: One\n  and two.")["a"].facts["what"].answer == "One and two."
