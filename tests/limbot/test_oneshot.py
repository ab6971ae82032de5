"""One question, one answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from llambo.core.errors import NodeLost
from llambo.core.fusion import Fusion, Vote, VoteCast
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent
from llambo.limbot.oneshot import ask

REQUEST = GenerateRequest.from_prompt("hello")
DONE = Done("stop", "m", "n1", 2, 5, 1, 1.23456, 9.87654)


class Notes:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def feed(self, text: str) -> None:
        self.heard.append(text)

    def close(self) -> None:
        self.heard.append("<closed>")


async def test_pieces_reach_the_writer_as_they_come_and_the_whole_is_returned() -> None:
    async def generate(_request: GenerateRequest) -> AsyncGenerator[Event, None]:
        yield TokenEvent("Hel")
        yield TokenEvent("lo")
        yield DONE

    notes = Notes()
    completion = await ask(generate, REQUEST, notes)
    assert notes.heard == ["Hel", "lo", "<closed>"]
    assert completion.document() == {
        "text": "Hello",
        "finish_reason": "stop",
        "model": "m",
        "node": "n1",
        "tokens": 2,
        "prompt_tokens": 5,
        "cached_tokens": 1,
        "ttft_ms": 1.235,
        "time_ms": 9.877,
        "failovers": 0,
        "fusion": None,
    }


async def test_an_error_midway_closes_the_writer_and_reaches_the_caller() -> None:
    async def generate(_request: GenerateRequest) -> AsyncGenerator[Event, None]:
        yield TokenEvent("Hel")
        raise NodeLost("node n1 is gone")

    notes = Notes()
    with pytest.raises(NodeLost, match="n1 is gone"):
        await ask(generate, REQUEST, notes)
    assert notes.heard == ["Hel", "<closed>"]


async def test_votes_are_told_apart_from_the_answer_and_the_outcome_is_in_the_document() -> None:
    vote = Vote("n1", "m", "Hi", 1, 1.0, 2.0)
    outcome = Fusion("majority-vote", 1.0, 2, 1, 1, (vote,))

    async def generate(_request: GenerateRequest) -> AsyncGenerator[Event, None]:
        yield VoteCast(vote, 2, 1, 1.0)
        yield TokenEvent("Hi")
        yield replace(DONE, fusion=outcome)

    notes = Notes()
    casts: list[VoteCast] = []
    completion = await ask(generate, REQUEST, notes, casts.append)
    assert notes.heard == ["Hi", "<closed>"]
    assert [cast.vote for cast in casts] == [vote]
    document = completion.document()["fusion"]
    assert (document["strategy"], document["votes"][0]["text"]) == ("majority-vote", "Hi")
