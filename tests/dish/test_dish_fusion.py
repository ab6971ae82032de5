"""`fusion`: what the session is told, and where votes and answer are shown."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import pytest

from llambo.core.errors import NoQuorum
from llambo.dish.asking import vote_row
from llambo.dish.interpreter import Interpreter
from llambo.dish.terminal import Terminal
from tests.dish.dish_world import World, until

VOTES = [
    "node=n1 model=m tokens=1 weight=1 time_ms=5 asked=2 answered=1 agreement=1 text=four\n",
    "node=n2 model=m tokens=4 weight=1 time_ms=6 asked=2 answered=2 agreement=0.5 text='it''s a=five 5'\n",
]
SEEN = "n1 (1 of 2, agreement 100 %): four\nn2 (2 of 2, agreement 50 %): it's a=five 5\n"


@pytest.mark.parametrize(
    ("line", "told", "prompt"),
    [
        ("fusion What is a node?", ["fusion"], "What is a node?"),
        ("fusion quorum What is a node?", ["fusion quorum"], "What is a node?"),
        ("fusion raft-consensus 5 What?", ["fusion raft-consensus 5"], "What?"),
        ("fusion 5 nodes?", ["fusion"], "5 nodes?"),
        ("fusion 'quorum is what?'", ["fusion"], "quorum is what?"),
        ("fusion to 3 people", ["fusion"], "to 3 people"),
        ("fusion majority of 3", ["fusion"], "majority of 3"),
        ("fusion 'majority 3 what?'", ["fusion"], "majority 3 what?"),
        (
            "fusion quorum 5 min_consensus=3 extract='a (b)' max_tokens=9 What?",
            ["fusion quorum 5 min_consensus=3 'extract=a (b)'", "max_tokens 9"],
            "What?",
        ),
        ("echo two | fusion majority-vote 3 Sum up.", ["fusion majority-vote 3"], "two\n\nSum up."),
    ],
)
async def test_the_session_is_told_how_and_what(world: World, line: str, told: list[str], prompt: str) -> None:
    assert await world.run(line) == f"you said: {prompt}\n"
    assert world.settings["0"] == told
    assert world.asked == [("0", prompt)]
    assert list(world.sessions.entries()) == []


async def on_terminal(world: World, line: str) -> tuple[int, str]:
    """The status of a line, and what a person sees of it."""
    screen = io.StringIO()
    interpreter = Interpreter(world.dish, Terminal(screen, shows=True), world.complaints.append)
    return await interpreter.line(line), screen.getvalue()


@pytest.mark.parametrize("votes_come", ["first", "at once"])
async def test_a_person_sees_each_vote_and_then_the_answer(world: World, votes_come: Any) -> None:
    world.votes = list(VOTES)
    world.votes_come = votes_come
    status, seen = await on_terminal(world, "fusion majority-vote 2 What?")
    assert (status, seen) == (0, f"{SEEN}\nyou said: What?\n")


async def test_votes_that_come_after_the_answer_stand_below_it(world: World) -> None:
    world.votes = list(VOTES)
    status, seen = await on_terminal(world, "fusion token-average 2 What?")
    assert (status, seen) == (0, f"you said: What?\n{SEEN}")


async def test_without_a_quorum_the_votes_are_shown_and_the_status_is_6(world: World) -> None:
    world.votes = list(VOTES)
    world.votes_come = "first"
    world.refusal = NoQuorum("no quorum: 1 of 2 nodes agree, 2 are needed")
    status, seen = await on_terminal(world, "fusion quorum 2 What?")
    assert (status, seen) == (6, SEEN)
    assert world.complaints == ["no quorum: 1 of 2 nodes agree, 2 are needed"]
    assert world.dish.status == 6


def test_a_voter_that_failed_is_shown_with_its_reason() -> None:
    line = "node=n1 model=m tokens=0 weight=1 time_ms=5 asked=2 answered=0 agreement=0 error='it died'"
    assert vote_row(line) == "n1 (0 of 2, agreement 0 %): failed: it died"


@pytest.mark.parametrize("words", ["majority 3", "Majority-Vote 3", "majority-votes 5", "raft 3", "token_average 2"])
async def test_a_strategy_that_is_misspelt_is_refused_and_not_asked(world: World, words: str) -> None:
    status, (complaint,) = await world.try_line(f"fusion {words} What?")
    assert status == 2
    assert complaint == (
        f"no fusion strategy is called {words[:-2]!r}; there are majority-vote, weighted-average, "
        "confidence-weighted, quorum, token-average, raft-consensus; a prompt that begins so is quoted"
    )
    assert world.asked == []


async def test_an_answer_is_redirected_without_the_votes(world: World) -> None:
    world.votes = list(VOTES)
    assert await on_terminal(world, "fusion majority-vote 2 What? | cat") == (0, "you said: What?\n")


async def test_an_interrupted_fusion_leaves_no_session(world: World) -> None:
    world.votes = list(VOTES)
    world.votes_come = "first"
    world.gate.clear()
    running = asyncio.create_task(on_terminal(world, "fusion majority-vote 2 What?"))
    await until(lambda: world.asked)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await until(lambda: not list(world.sessions.entries()))
