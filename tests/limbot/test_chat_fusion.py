"""Several nodes for one answer in a chat: what is asked, what is shown of the votes, and what is kept."""

from __future__ import annotations

import asyncio
import json
import unicodedata
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llambo.core.errors import BadRequest, LlamboError, NoQuorum, Unreachable
from llambo.core.fusion import STRATEGIES, Fusion, FusionRequest, Vote, VoteCast
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent
from llambo.limbot import actions, fusion, transfer
from llambo.limbot.chat import Chat
from llambo.limbot.completion import ChatCompleter
from llambo.limbot.store import Store
from tests.limbot.test_chat import Elsewhere, Script, chatting, says

MAJORITY = FusionRequest("majority-vote", 3)
VOTES = (
    Vote("n1", "m", "yes", 1, 1.0, 100.0),
    Vote("n22", "m", "", 0, 0.0, 200.0, error="the node is gone"),
    Vote("n3", "m", "yes", 1, 1.0, 1300.0),
)
OUTCOME = Fusion("majority-vote", 2 / 3, 3, 2, 0, VOTES)
SUMMARY = "majority-vote: 2 of 3 answered, 1 failed, agreement 67 %"


def votes(error: LlamboError | None = None, *, waits: asyncio.Event | None = None) -> Script:
    """Three votes, and then an answer, or `error`, or nothing for ever."""

    async def script(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        answered = 0
        for vote in VOTES:
            answered += not vote.error
            yield VoteCast(vote, 3, answered, answered / 3)
        if waits is not None:
            waits.set()
            await asyncio.Event().wait()
        if error is not None:
            raise error
        yield TokenEvent("yes")
        yield Done("stop", "m", "n1", 1, 5, 0, 1300.0, 1300.5, fusion=OUTCOME)

    return script


# --- what is asked for ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "request_"),
    [
        ("majority-vote 3", MAJORITY),
        ("raft-consensus 5 4", FusionRequest("quorum", 5, 4)),
        ("token-average", FusionRequest("token-average")),
        ("off", None),
    ],
)
def test_what_is_typed_after_the_command_is_what_is_asked(typed: str, request_: FusionRequest | None) -> None:
    assert fusion.typed(typed) == request_
    assert fusion.from_dict(json.loads(json.dumps(fusion.to_dict(request_)))) == request_


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("best 3", "no fusion strategy is called 'best'; there are majority-vote"),
        ("quorum x", "/fusion takes a strategy, how many nodes"),
        ("quorum 3 2 1", "/fusion takes a strategy, how many nodes"),
        ("quorum 1", "between 2 and 64 nodes, not 1"),
        ("quorum 99999999", "between 2 and 64 nodes"),
        ("quorum 0", "the number of nodes must be 1 at least"),
        ("quorum 3 4", "min_consensus must be between 1 and the 3"),
        ("quorum 3 0", "the consensus must be 1 at least"),
        ("off 3", "/fusion off takes nothing more"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_sentence(typed: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words) as raised:
        fusion.typed(typed)
    assert "\n" not in raised.value.message


def test_numbers_without_a_strategy_are_told_what_is_missing() -> None:
    for numbers in ((3, None, ""), (None, 2, ""), (None, None, "x")):
        with pytest.raises(BadRequest, match="add --fusion S, such as --fusion majority-vote"):
            fusion.requested("", *numbers)
    assert fusion.requested("") is None


def test_what_is_compared_is_told_with_what_is_asked() -> None:
    request = fusion.requested("quorum", 5, 3, "answer: (.*)")
    assert fusion.described(request) == "quorum of 5 nodes, 3 must agree, compared by answer: (.*)"
    assert fusion.from_dict(fusion.to_dict(request)) == request


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_rows_name_the_node_the_time_and_what_it_said() -> None:
    assert fusion.rows(OUTCOME, 80) == [
        "n1      0.1 s  yes",
        "n22     0.2 s  failed: the node is gone",
        "n3      1.3 s  yes",
    ]
    assert fusion.rows(OUTCOME, 20) == ["n1   yes", "n22  failed: the no…", "n3   yes"]
    assert fusion.rows(OUTCOME, 20, most=2)[0] == "1 more before"
    assert fusion.summary(OUTCOME) == SUMMARY
    assert fusion.who(OUTCOME) == "n1 n3"


@given(
    st.lists(st.tuples(st.text(max_size=20), st.text(max_size=300), st.text(max_size=40)), min_size=1, max_size=12),
    st.integers(1, 200),
)
def test_no_vote_is_wider_than_the_window_or_moves_its_cursor(said: list[tuple[str, str, str]], width: int) -> None:
    cast = tuple(Vote(node, "m", text, 1, 1.0, 5.0, error=error) for node, text, error in said)
    for row in fusion.rows(Fusion("quorum", 0.0, 12, len(cast), 0, cast), width, most=fusion.MOST_ROWS):
        assert cell_len(row) <= width
        assert not any(unicodedata.category(character) == "Cc" for character in row)


@pytest.mark.parametrize("document", [{}, {"strategy": "best"}, {"votes": 3}])
def test_an_outcome_that_cannot_be_read_is_none(document: dict[str, object]) -> None:
    assert fusion.stored_summary(document) == ""


# --- a chat -----------------------------------------------------------------------------------------------------------


async def test_a_vote_is_shown_as_it_goes_on_then_the_answer_then_how_they_agreed(tmp_path: Path) -> None:
    connection = Elsewhere(votes())
    async with chatting(connection, tmp_path) as (chat, notes):
        chat.fusion = MAJORITY
        assert await chat.ask("hello") == "yes"
        assert connection.requests[0].fusion == MAJORITY
        assert connection.requests[0].model == "", "every model has a vote"
        assert connection.fusions == [MAJORITY]
        assert [len(shown.votes) if shown else None for shown in notes.shown] == [1, 2, 3, None, None]
        progress = [text for text in notes.busy_with if " answered" in text]
        assert progress == [
            "1 of 3 answered, agreement 33 % · n1 · Ctrl-C stops",
            "1 of 3 answered, 1 failed, agreement 33 % · n1 · Ctrl-C stops",
            "2 of 3 answered, 1 failed, agreement 67 % · n1 n3 · Ctrl-C stops",
        ]
        assert notes.said == ["yes", "<end>", f"1 tokens · first after 1300 ms · m on n1 · {SUMMARY}"]


async def test_a_model_that_was_chosen_is_the_only_one_asked(tmp_path: Path) -> None:
    connection = Elsewhere(votes())
    async with chatting(connection, tmp_path) as (chat, _):
        chat.fusion, chat.model = MAJORITY, "m"
        await chat.ask("hello")
        assert connection.requests[0].model == "m"


async def test_the_outcome_is_kept_with_the_answer_and_shown_and_exported_with_it(tmp_path: Path) -> None:
    connection = Elsewhere(votes())
    async with chatting(connection, tmp_path) as (chat, notes):
        chat.fusion = MAJORITY
        await chat.ask("hello")
        session, turns = await chat.shelf(Store.session, 1), await chat.shelf(Store.turns, 1)
        assert (turns[1].fusion["agreement"], len(turns[1].fusion["votes"])) == (0.666667, 3)
        assert fusion.from_dict(session.fusion) == MAJORITY
        again = Chat(connection, chat.shelf, notes)
        await again.resume(session)
        assert again.fusion == MAJORITY
        for same in (chat, again):
            notes.said.clear()
            await actions.perform(same, "/history")
            assert f"\n2 answer ({SUMMARY})" in notes.said
        assert f"## Answer (m)\n\nyes\n\n*{SUMMARY}*\n" in transfer.to_markdown(session, turns)
        assert f"Answer ({SUMMARY}): yes\n" in transfer.to_text(session, turns)
        exported = transfer.to_json([(session, turns)])
        (number,) = await chat.shelf(Store.take_in, transfer.from_json(exported))
        assert (await chat.shelf(Store.turns, number))[1].fusion == turns[1].fusion
        assert (await chat.shelf(Store.session, number)).fusion == session.fusion


async def test_without_a_quorum_each_vote_is_told_and_nothing_goes_into_the_conversation(tmp_path: Path) -> None:
    connection = Elsewhere(votes(NoQuorum("no quorum: 2 of 3 nodes agree, 3 are needed")), says("one"))
    async with chatting(connection, tmp_path) as (chat, notes):
        chat.fusion = FusionRequest("quorum", 3, 3)
        await actions.perform(chat, "hello")
        assert notes.said == [
            "> hello",
            "<end>",
            "! n1      0.1 s  yes",
            "! n22     0.2 s  failed: the node is gone",
            "! n3      1.3 s  yes",
            "! no quorum: 2 of 3 nodes agree, 3 are needed",
        ]
        assert chat.conversation.entries == ()
        kept = (await chat.shelf(Store.turns, 1))[1]
        assert (kept.text, kept.finish, kept.fusion["strategy"]) == ("", "no_quorum", "quorum")
        assert len(kept.fusion["votes"]) == 3
        chat.fusion = None
        assert await chat.ask("and now?") == "one"
        assert [message.content for message in connection.requests[-1].messages] == ["and now?"]


async def test_a_vote_that_is_stopped_leaves_the_screen_as_it_was(tmp_path: Path) -> None:
    voted = asyncio.Event()
    async with chatting(Elsewhere(votes(waits=voted)), tmp_path) as (chat, notes):
        chat.fusion = MAJORITY
        task = asyncio.create_task(chat.ask("hello"))
        await voted.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert notes.shown[-1] is None
        assert notes.said == ["<end>", "stopped; nothing had arrived"]
        assert notes.busy_with[-1] == ""


async def test_votes_of_a_cluster_that_went_away_do_not_count_when_another_is_asked(tmp_path: Path) -> None:
    connection = Elsewhere(votes(Unreachable("gone")), votes())
    async with chatting(connection, tmp_path) as (chat, notes):
        chat.fusion = MAJORITY
        assert await chat.ask("hello") == "yes"
        assert [len(shown.votes) for shown in notes.shown if shown] == [1, 2, 3, 1, 2, 3]


async def test_votes_behind_the_answer_take_nothing_from_it(tmp_path: Path) -> None:
    outcome = Fusion("token-average", 1.0, 3, 2, 0, VOTES)

    async def averaged(request: GenerateRequest) -> AsyncGenerator[Event, None]:
        yield TokenEvent("ye")
        yield TokenEvent("s")
        for vote in VOTES:
            yield VoteCast(vote, 3, 2, 1.0)
        yield Done("stop", "m", "n1", 2, 5, 0, 10.0, 1010.0, fusion=outcome)

    async with chatting(Elsewhere(averaged), tmp_path) as (chat, notes):
        chat.fusion = FusionRequest("token-average", 3)
        assert await chat.ask("hello") == "yes"
        assert set(notes.shown) == {None}
        assert notes.said[-1] == (
            "2 tokens · first after 10 ms · 1 tokens/s · m on n1 · token-average: 2 of 3 answered, 1 failed, "
            "agreement 100 %"
        )


async def test_the_command_sets_shows_and_ends_it(tmp_path: Path) -> None:
    connection = Elsewhere(says("yes"))
    async with chatting(connection, tmp_path) as (chat, notes):
        await chat.ask("hello")
        assert connection.requests[-1].fusion is None
        notes.said.clear()
        for line in ("/fusion", "/fusion quorum 3 2", "/fusion", "/status", "/fusion nope", "/fusion off"):
            await actions.perform(chat, line)
        assert f"strategies are {', '.join(STRATEGIES)}" in " ".join(notes.said)
        told = [line for line in notes.said if "fusion" in line and not line.startswith(">")]
        assert told[:4] == [
            "fusion is off: one node answers",
            "fusion is quorum of 3 nodes, 2 must agree",
            "fusion is quorum of 3 nodes, 2 must agree",
            "fusion        quorum of 3 nodes, 2 must agree",
        ]
        assert told[4].startswith("! no fusion strategy is called 'nope'")
        assert told[5] == "fusion is off: one node answers"
        assert FusionRequest("quorum", 3, 2) in connection.fusions, "nodes are started before anything is asked"
        assert (await chat.shelf(Store.session, 1)).fusion == {}


async def test_nodes_that_do_not_fit_leave_the_setting_as_it_was(tmp_path: Path) -> None:
    class Full(Elsewhere):
        async def ready(self, model: str, fusion: FusionRequest | None = None) -> object:  # type: ignore[override]
            if fusion is not None:
                raise LlamboError("they do not fit")
            return self.served

    async with chatting(Full(says("yes")), tmp_path) as (chat, notes):
        await actions.perform(chat, "/fusion majority-vote 9")
        assert notes.said[-1] == "! they do not fit"
        assert chat.fusion is None
        assert await chat.ask("hello") == "yes"


async def test_strategies_are_completed() -> None:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    async def offered(line: str) -> list[str]:
        found = ChatCompleter().get_completions_async(Document(line), CompleteEvent())
        return [completion.text async for completion in found]

    assert await offered("/fus") == ["/fusion"]
    assert set(await offered("/fusion ")) >= {*STRATEGIES, "off"}
    assert await offered("/fusion maj") == ["majority-vote"]
