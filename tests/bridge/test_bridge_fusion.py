"""Several nodes asked for one answer, through both protocols, the Python clients and the door behind a bridge."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bridge_fakes import Running, ballot

from llambo.bridge import commands as c
from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.client import Bridge
from llambo.bridge.client_calls import Token
from llambo.bridge.pool import BridgePool
from llambo.bridge.remote import BridgeDoor
from llambo.bridge.text import parse_line
from llambo.core.errors import BadRequest, NoQuorum
from llambo.core.fusion import FusionRequest, VoteCast
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent

MAJORITY = FusionRequest("majority-vote", 3)
WORDS = ["yes", "no", "yes"]
CASTS = [event for event in ballot(MAJORITY, WORDS) if isinstance(event, VoteCast)]
QUORUM = r"no quorum: 1 of 3 nodes agree, 2 are needed"


@pytest.mark.parametrize(
    ("options", "fusion"),
    [
        ("fusion=majority-vote", FusionRequest("majority-vote")),
        ("fusion=quorum nodes=5 min_consensus=4", FusionRequest("quorum", 5, 4)),
        ("nodes=5 fusion=raft-consensus", FusionRequest("quorum", 5)),
        ("fusion=majority-vote extract=answer:(\\d+) seed=1", FusionRequest("majority-vote", extract="answer:(\\d+)")),
    ],
)
@pytest.mark.parametrize("name", ["INFER", "INFER_STREAM"])
def test_the_options_of_a_line_are_a_request_for_fusion(name: str, options: str, fusion: FusionRequest) -> None:
    command = parse_line(f"{name} {options} Who wins?".encode())
    assert isinstance(command, c.Infer | c.InferStream)
    assert (command.request.fusion, command.request.messages[-1].content) == (fusion, "Who wins?")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("INFER fusion=best a", "no fusion strategy is called 'best'; there are majority-vote, weighted-average"),
        ("INFER fusion= a", "fusion= needs a name"),
        ("INFER nodes=3 a", "nodes says how several nodes answer: give fusion too, such as majority-vote"),
        ("INFER min_consensus=2 a", "min_consensus says how several nodes answer"),
        ("INFER extract=x a", "extract says how several nodes answer"),
        ("INFER fusion=quorum nodes=x a", "nodes must be a whole number, not 'x'"),
        ("INFER fusion=quorum nodes=0 a", "nodes must be 1 at least"),
        ("INFER fusion=quorum nodes=1 a", "fusion takes between 2 and 64 nodes, not 1"),
        ("INFER fusion=quorum nodes=65 a", "fusion takes between 2 and 64 nodes, not 65"),
        ("INFER fusion=quorum nodes=-3 a", "fusion takes between 2 and 64 nodes, not -3"),
        ("INFER fusion=quorum nodes=3 min_consensus=4 a", "min_consensus must be between 1 and the 3 nodes"),
        ("INFER fusion=quorum min_consensus=0 a", "min_consensus must be 1 at least"),
        ("INFER_MULTI fusion=quorum a||b", "fusion goes with INFER and INFER_STREAM"),
    ],
)
def test_what_cannot_be_meant_is_one_clear_sentence(line: str, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        parse_line(line.encode())


def test_a_prompt_that_begins_like_an_option_is_written_as_a_json_string() -> None:
    command = parse_line(b'INFER "nodes=3 is too few"')
    assert isinstance(command, c.Infer)
    assert (command.request.fusion, command.request.messages[-1].content) == (None, "nodes=3 is too few")


async def test_a_stream_of_lines_has_the_votes_then_the_answer_then_the_outcome(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER_STREAM fusion=majority-vote nodes=3 yes fail yes\n")
    started, *votes, token, last = [await client.line() for _ in range(6)]
    assert started["message"] == "Starting token generation"
    assert [vote["type"] for vote in votes] == ["vote"] * 3
    assert [(vote["node"], vote["text"], vote["error"], vote["asked"], vote["answered"]) for vote in votes] == [
        ("n1", "yes", "", 3, 1),
        ("n2", "", "the node is gone", 3, 1),
        ("n3", "yes", "", 3, 2),
    ]
    assert votes[2]["agreement"] == 0.666667
    assert votes[0]["logprob"] == -0.5
    assert token == {"type": "token", "token": "yes"}
    fusion = last["fusion"]
    assert last["final"] and (fusion["strategy"], fusion["agreement"], fusion["asked"]) == (
        "majority-vote",
        0.666667,
        3,
    )
    assert [vote["node"] for vote in fusion["votes"]] == ["n1", "n2", "n3"]


async def test_infer_gives_the_outcome_beside_the_text(bridge: Running) -> None:
    client = await bridge.client()
    answer = await client.ask("INFER fusion=weighted-average nodes=3 yes no yes")
    assert (answer["data"], answer["fusion"]["strategy"]) == ("yes", "weighted-average")
    assert "fusion" not in await client.ask("INFER yes")


async def test_without_a_quorum_the_votes_are_told_with_the_error(bridge: Running) -> None:
    client = await bridge.client()
    answer = await client.ask("INFER fusion=quorum nodes=3 a b c")
    assert (answer["status"], answer["code"]) == ("error", "no_quorum")
    assert [vote["text"] for vote in answer["data"]["votes"]] == ["a", "b", "c"]
    client.send("INFER_STREAM fusion=quorum nodes=3 a b c\n")
    lines = [await client.line() for _ in range(5)]
    assert [line.get("type") for line in lines] == [None, "vote", "vote", "vote", "token"]
    assert (lines[-1]["final"], lines[-1]["code"], lines[-1]["message"]) == (
        True,
        "no_quorum",
        "no quorum: 1 of 3 nodes agree, 2 are needed",
    )
    assert (await client.ask("PING"))["data"] == "pong"


async def test_a_client_that_hangs_up_during_a_vote_ends_it(bridge: Running) -> None:
    client = await bridge.client()
    client.send("INFER_STREAM fusion=majority-vote nodes=3 " + "no " * 100_000 + "\n")
    await client.line()
    await client.close()
    await bridge.door.until_active(0)


@pytest.mark.parametrize(
    "request_",
    [
        GenerateRequest.from_prompt("yes no yes"),
        GenerateRequest(raw_prompt="yes fail yes", model="fake", logprobs=True),
    ],
)
@pytest.mark.parametrize("fusion", [MAJORITY, FusionRequest(), FusionRequest("quorum", 4, 2, "(y)es")])
async def test_votes_and_outcome_are_the_same_on_both_sides_of_a_bridge(
    bridge: Running, request_: GenerateRequest, fusion: FusionRequest
) -> None:

    request_ = replace(request_, fusion=fusion)
    near = [_rounded(event) async for event in bridge.door.generate(request_)]
    async with AsyncBridge.connect(str(bridge.path)) as client:
        far = [event async for event in BridgeDoor(client).generate(request_)]
    assert far == near
    assert bridge.door.requests == [request_, request_]
    assert [type(event) for event in far] == [VoteCast, VoteCast, VoteCast, TokenEvent, Done]


def _rounded(event: Event) -> Event:
    """The event as it travels: shares have six digits."""

    match event:
        case VoteCast():
            return replace(event, agreement=round(event.agreement, 6))
        case Done(fusion=fusion) if fusion is not None:
            return replace(event, fusion=replace(fusion, agreement=round(fusion.agreement, 6)))
    return event


async def test_no_quorum_comes_through_a_bridge_after_every_vote(bridge: Running) -> None:
    request = GenerateRequest(raw_prompt="a b c", fusion=FusionRequest("quorum", 3))
    seen: list[Event] = []
    async with AsyncBridge.connect(str(bridge.path)) as client:
        with pytest.raises(NoQuorum, match=QUORUM) as raised:
            async for event in BridgeDoor(client).generate(request):
                seen.append(event)
    assert (len(seen), raised.value.exit_status) == (3, 6)


async def test_the_asynchronous_client_gives_votes_to_who_wants_them(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        tokens = [token async for token in client.stream("yes no yes", fusion="majority-vote", nodes=3)]
        assert [token.text for token in tokens] == ["yes", ""]
        assert tokens[-1].fusion is not None
        events = [event async for event in client.stream_votes("yes no yes", fusion="majority-vote", nodes=3)]
        assert [event.vote for event in events[:3] if isinstance(event, VoteCast)] == [cast.vote for cast in CASTS]
        assert all(isinstance(event, Token) for event in events[3:])
        whole = await client.complete("yes no yes", fusion="majority-vote", nodes=3)
        assert whole.text == "yes"
        assert whole.fusion is not None
        assert [vote.text for vote in whole.fusion.votes] == WORDS
        with pytest.raises(NoQuorum, match=QUORUM):
            await client.infer("a b c", fusion="quorum", nodes=3)
        with pytest.raises(TypeError, match="unknown option 'fusion'"):
            await client.infer_multi(["a"], fusion="quorum")  # type: ignore[call-arg] # what is tested


def test_the_blocking_clients_give_votes_to_who_wants_them(threaded: Running) -> None:
    with Bridge.connect(str(threaded.path)) as bridge, BridgePool([str(threaded.path)], size=1) as pool:
        for client in (bridge, pool):
            assert client.infer("yes no yes", fusion="majority-vote", nodes=3) == "yes"
            events = list(client.stream_votes("yes no yes", fusion="majority-vote", nodes=3))
            assert [type(event) for event in events] == [VoteCast, VoteCast, VoteCast, Token, Token]
            heard: list[Token] = []
            whole = client.infer_stream("yes no yes", heard.append, fusion="majority-vote", nodes=3)
            assert whole.fusion is not None
            assert len(heard) == 2
            with pytest.raises(NoQuorum, match=QUORUM):
                client.infer("a b c", fusion="quorum", nodes=3)
            with pytest.raises(BadRequest, match="no fusion strategy"):
                client.infer("a b c", fusion="best")
