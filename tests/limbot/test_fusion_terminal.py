"""Votes on a real terminal: a window of any size shows them as they come, and nothing of them stays but the outcome."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cli.daemons import cluster
from tests.cli.programs import command
from tests.limbot.chatting import Chatter, limbot
from tests.terminals import CTRL_C, on_terminal

QUESTION = "What is a node?"
VARIED = ("--temperature", "1.9", "--seed", "5", "--max-tokens", "40")
OUTCOME = r"majority-vote: \d of 3 answered.*agreement \d+ %"


def test_a_chat_votes_shows_the_answer_and_how_they_agreed() -> None:
    with limbot("--fusion", "majority-vote", "--nodes", "3", *VARIED) as person:
        shown = person.ask(QUESTION)
        assert re.search(OUTCOME, shown.replace("\n", " "))
        assert not re.search(r"^n\d +\d\.\d s", person.text, re.MULTILINE), "votes are never printed"
        person.enter("/history")
        person.expect(r"2 answer \(majority-vote: \d of 3 answered")
        person.enter("/fusion quorum 3 3")
        person.expect("fusion is quorum of 3 nodes, 3 must agree")
        person.enter("/set temperature 5")
        person.expect("temperature is 5.0")
        person.enter(QUESTION)
        person.expect("no quorum: . of 3 nodes agree, 3 are needed")
        person.prompt()
        assert len(re.findall(r"^n\d +\d\.\d s  \S", person.text, re.MULTILINE)) >= 2, "each vote is told"
        person.enter("/fusion off")
        person.expect("fusion is off: one node answers")
        shown = person.ask(QUESTION)
        assert "answered" not in shown
        person.enter("/exit")
        assert person.wait() == 0
        assert "Traceback" not in person.text


SLOW = ("--max-tokens", "1000", "--fusion", "quorum", "--nodes", "4", "--min-consensus", "4")
"""One node with one slot: its four answers come one after the other, a second each or so."""


@pytest.mark.parametrize("columns", [80, 24])
def test_votes_stand_above_the_input_as_they_come_and_make_room_for_the_answer(
    endless_model: Path, columns: int
) -> None:
    with cluster(), limbot("-m", endless_model, *SLOW, columns=columns, rows=20) as person:
        person.enter("go on")
        person.expect(r"^n\d [^\n]*\nn\d [^\n]*\n2 of 4 answered", on_screen=True)
        rows = [line for line in person.screen if re.match(r"n\d  +\S", line)]
        assert len(rows) == 2
        assert all(len(row) < columns for row in rows)
        assert not any(re.match(r"n\d  +\S", line) for line in person.scrolled)
        person.type("typed while they vote")
        person.until(lambda: person.cursor_line == "> typed while they vote", "no echo")
        person.until(lambda: "quorum: 4 of 4 answered, agreement 100 %" in flat(person), "no outcome")
        person.prompt("typed while they vote")
        assert not re.search(r"^n\d  +\S", person.text, re.MULTILINE), "no vote was left behind"
        assert "of 4 answered · " not in person.text


def test_a_vote_that_is_stopped_leaves_the_line_as_it_was_typed(endless_model: Path) -> None:
    with cluster(), limbot("-m", endless_model, *SLOW) as person:
        person.enter("go on")
        person.expect(r"^n\d [^\n]*\n1 of 4 answered, agreement \d+ % · n\d · Ctrl-C stops", on_screen=True)
        person.type("half a li")
        person.until(lambda: person.cursor_line == "> half a li", "no echo")
        person.type(CTRL_C)
        person.expect("stopped; nothing had arrived")
        person.prompt("half a li")
        assert not re.search(r"^n\d  +\S", person.text, re.MULTILINE), "no vote was left behind"
        person.resize(30, 12)
        person.type("ne")
        person.until(lambda: person.cursor_line == "> half a line", "no echo")


@pytest.mark.parametrize("columns", [20, 33])
def test_a_narrow_window_shows_votes_in_one_row_each(columns: int) -> None:
    with limbot("--fusion", "majority-vote", "--nodes", "5", *VARIED, columns=columns, rows=12) as person:
        person.enter(QUESTION)
        person.until(
            lambda: "agreement" in person.text.replace("\n", " ") and " · first " in flat(person), "no outcome"
        )
        person.prompt()
        assert re.search(r"majority-vote: ?\d of 5", flat(person))
        assert not re.search(r"^n\d  \S", person.text, re.MULTILINE), "no vote was left behind"
        person.enter("/exit")
        assert person.wait() == 0


def test_a_single_question_tells_the_outcome_below_the_answer() -> None:
    words = ("--fusion", "majority-vote", "--nodes", "3", *VARIED, QUESTION)
    for columns in (80, 24):
        with on_terminal(command("limbot", *words), Chatter, columns=columns) as person:
            assert person.wait() == 0
            shown = flat(person)
            assert re.search(r"\w.* majority-vote: \d of 3 answered,.* agreement \d+ % *$", shown)
            assert shown.count("answered") == 1
            assert "thinking" not in person.text


def flat(person: Chatter) -> str:
    """All that is shown, without the ends of lines."""
    return " ".join(person.text.split())
