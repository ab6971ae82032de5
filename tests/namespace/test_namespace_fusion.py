"""Several nodes answer one question: the setting of a session, its tally, and the directory `fusion`."""

from __future__ import annotations

import asyncio
import json

import pytest

from llambo.core.errors import BadRequest, EngineFailed, NoQuorum, TimedOut
from llambo.core.fusion import Fusion, FusionRequest, Vote, VoteCast
from llambo.core.fusion_document import fusion_of
from llambo.core.types import Message
from llambo.ninep.client import AsyncClient, AsyncFile
from tests.namespace.conversations import Gate, session
from tests.namespace.namespace_world import World, until

FIRST = Vote("n1", "m", "four", 1, 1.0, 12.5, -0.25)
SECOND = Vote("n2", "other m", "it's\nfive", 3, 0.5, 20.0)
BROKEN = Vote("n3", "m", "", 0, 0.0, 21.0, error="n3 is gone")
CASTS = [VoteCast(FIRST, 3, 1, 1.0), VoteCast(SECOND, 3, 2, 0.5), VoteCast(BROKEN, 3, 2, 0.5)]
LINES = (
    "node=n1 model=m tokens=1 weight=1 time_ms=12.5 asked=3 answered=1 agreement=1 text=four\n"
    "node=n2 model='other m' tokens=3 weight=0.5 time_ms=20 asked=3 answered=2 agreement=0.5 text='it''s five'\n"
    "node=n3 model=m tokens=0 weight=0 time_ms=21 asked=3 answered=2 agreement=0.5 error='n3 is gone'\n"
)
OUTCOME = Fusion("majority-vote", 0.5, 3, 2, 0, (FIRST, SECOND, BROKEN))


def fuses(world: World) -> None:
    world.cluster.pieces = [*CASTS, "fo", "ur"]
    world.cluster.fusion = OUTCOME


# --- the setting ---


@pytest.mark.parametrize(
    ("line", "wanted", "shown"),
    [
        ("fusion", FusionRequest(), "fusion\n"),
        ("fusion majority-vote", FusionRequest("majority-vote"), "fusion majority-vote\n"),
        ("fusion raft-consensus 5", FusionRequest("quorum", 5), "fusion quorum 5\n"),
        (
            "fusion quorum 5 min_consensus=4 extract='answer: (\\d+)'",
            FusionRequest("quorum", 5, 4, "answer: (\\d+)"),
            "fusion quorum 5 min_consensus=4 extract='answer: (\\d+)'\n",
        ),
        ("fusion extract=it's", None, ""),
        ("fusion quorum 5\nfusion off", None, ""),
    ],
)
async def test_the_setting_is_read_back_as_it_can_be_written_and_goes_into_the_request(
    world: World, client: AsyncClient, line: str, wanted: FusionRequest | None, shown: str
) -> None:
    async with session(client) as (ctl, path):
        if "it's" in line:
            with pytest.raises(BadRequest, match="a quote is not closed"):
                await ctl.write(line)
        else:
            await ctl.write(line)
        assert (await client.read_file(f"{path}/ctl")).decode() == shown
        if shown:
            await ctl.write(shown)
        await client.write_file(f"{path}/prompt", "Hello")
        await client.read_file(f"{path}/stream")
    (request,) = world.cluster.requests
    assert request.fusion == wanted


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("fusion council", "no fusion strategy is called 'council'; there are majority-vote, "),
        ("fusion quorum many", "fusion: N is a whole number, not 'many'"),
        ("fusion quorum 1", "fusion takes between 2 and 64 nodes, not 1"),
        ("fusion quorum 65", "fusion takes between 2 and 64 nodes, not 65"),
        ("fusion quorum 3 min_consensus=4", "min_consensus must be between 1 and the 3 nodes asked, not 4"),
        ("fusion quorum 3 4", "fusion has too many arguments; write: fusion [STRATEGY|off] [N] "),
        ("fusion off 3", "fusion off takes nothing more; write: fusion off"),
    ],
)
async def test_a_setting_that_cannot_be_is_refused_in_a_session_and_in_the_directory(
    client: AsyncClient, line: str, complaint: str
) -> None:
    async with session(client) as (ctl, path):
        for write in (ctl.write(line), client.write_file("fusion/ctl", line)):
            with pytest.raises(BadRequest) as refusal:
                await write
            assert refusal.value.message.startswith(complaint)
        assert await client.read_file(f"{path}/ctl") == b""


# --- a session ---


async def test_a_tally_is_a_line_per_vote_as_it_comes_and_again_from_the_first(
    world: World, client: AsyncClient
) -> None:
    fuses(world)
    gate = world.cluster.gate = Gate(1)
    async with session(client) as (ctl, path):
        await ctl.write("fusion majority-vote 3")
        await client.write_file(f"{path}/prompt", "2+2?")
        async with client.open(f"{path}/stream") as stream, client.open(f"{path}/tally") as tally:
            first, *others = LINES.splitlines(keepends=True)
            assert (await tally.read()).decode() == first
            assert b"asked 3\nanswered 1\nagreement 1\n" in await client.read_file(f"{path}/status")
            late = asyncio.create_task(tally.read())
            await client.stat("/")
            assert not late.done()
            gate.set()
            assert (await late + await tally.read_all()).decode() == "".join(others)
            assert (await stream.read_all()).decode() == "four"
        assert (await client.read_file(f"{path}/tally")).decode() == LINES
        status = (await client.read_file(f"{path}/status")).decode()
        assert "answered 2\nagreement 0.5\ncancelled 0\nstrategy majority-vote\n" in status
        assert (await client.read_file("fusion/tally")).decode() == LINES
        assert json.loads(await client.read_file("fusion/last-result"))["text"] == "four"
        assert (await client.read_file(f"{path}/history")).decode() == "user\n\t2+2?\nassistant\n\tfour\n"


@pytest.mark.parametrize("waiting", [True, False])
async def test_who_asks_for_votes_before_the_text_gets_them_before_it(
    world: World, client: AsyncClient, waiting: bool
) -> None:
    async def read_in_turn(file: AsyncFile, name: str, order: list[str]) -> None:
        await file.read()
        order.append(name)

    fuses(world)
    for _ in range(8):
        order: list[str] = []
        gate = world.cluster.gate = Gate(0)
        async with session(client) as (ctl, path):
            await ctl.write("fusion majority-vote 3")
            await client.write_file(f"{path}/prompt", "2+2?")
            async with client.open(f"{path}/stream") as stream, client.open(f"{path}/tally") as tally:
                if not waiting:
                    gate.set()
                    while b"state done" not in await client.read_file(f"{path}/status"):
                        pass
                reads = [read_in_turn(tally, "votes", order), read_in_turn(stream, "text", order)]
                both = asyncio.gather(*reads)
                await asyncio.sleep(0)
                await client.stat("/")  # both reads are there
                gate.set()
                await both
                assert order == ["votes", "text"]


async def test_votes_that_come_after_the_text_are_in_the_tally_too(world: World, client: AsyncClient) -> None:
    world.cluster.pieces = ["fo", "ur", *CASTS]
    gate = world.cluster.gate = Gate(3)
    async with session(client) as (ctl, path):
        await ctl.write("fusion token-average 3")
        await client.write_file(f"{path}/prompt", "2+2?")
        async with client.open(f"{path}/stream") as stream, client.open(f"{path}/tally") as tally:
            said = await tally.read()
            gate.set()
            assert (said + await tally.read_all()).decode() == LINES
            assert (await stream.read_all()).decode() == "four"


async def test_of_one_nodes_answer_there_is_no_tally(client: AsyncClient) -> None:
    async with session(client) as (_, path):
        with pytest.raises(BadRequest, match="nothing was asked yet"):
            await client.read_file(f"{path}/tally")
        await client.write_file(f"{path}/prompt", "Hello")
        await client.read_file(f"{path}/stream")
        with pytest.raises(BadRequest, match="one node answers this: there is no tally; write fusion to the ctl"):
            await client.read_file(f"{path}/tally")


async def test_who_reads_the_tally_keeps_nothing_going_and_ends_nothing(world: World, client: AsyncClient) -> None:
    fuses(world)
    world.cluster.gate = Gate(1)
    async with session(client) as (ctl, path):
        await ctl.write("fusion\ntimeout 0.2")
        await client.write_file(f"{path}/prompt", "2+2?")
        async with client.open(f"{path}/stream"):
            async with client.open(f"{path}/tally") as tally:
                await tally.read()
                with pytest.raises(TimedOut, match="nothing came within"):
                    await tally.read()
            assert not world.cluster.closed.is_set()
            reading = asyncio.create_task(client.read_file(f"{path}/tally"))
            await client.stat("/")
        await until(world.cluster.closed.is_set)
        assert (await reading).decode() == LINES.splitlines(keepends=True)[0]
        assert b"state pending\n" in await client.read_file(f"{path}/status"), "it can be asked again"


async def test_without_a_quorum_the_refusal_begins_with_these_words_and_the_tally_is_there(
    world: World, client: AsyncClient
) -> None:
    world.cluster.pieces = [*CASTS, NoQuorum("no quorum: 1 of 3 nodes agree, 2 are needed")]
    async with session(client) as (ctl, path):
        await ctl.write("fusion quorum 3")
        await client.write_file(f"{path}/prompt", "2+2?")
        with pytest.raises(NoQuorum) as refusal:
            await client.read_file(f"{path}/stream")
        assert (refusal.value.message, refusal.value.exit_status) == ("no quorum: 1 of 3 nodes agree, 2 are needed", 6)
        for file in (f"{path}/error", "error"):
            assert await client.read_file(file) == b"no quorum: 1 of 3 nodes agree, 2 are needed\n"
        assert (await client.read_file(f"{path}/tally")).decode() == LINES
        state = await client.read_file(f"{path}/status")
        prompt = await client.read_file(f"{path}/prompt")
        assert (b"state pending\n" in state, prompt) == (True, b"2+2?"), "it can be asked again"


# --- the directory ---


async def ask(data: AsyncFile, prompt: str = "2+2?") -> str:
    await data.write(prompt)
    return (await data.read_all()).decode()


async def test_a_question_is_written_and_the_agreed_answer_read_on_the_same_descriptor(
    world: World, client: AsyncClient
) -> None:
    fuses(world)
    assert await client.read_file("fusion/ctl") == b"fusion\n"
    assert await client.read_file("fusion/last-result") == b"null\n"
    assert await client.read_file("fusion/tally") == b""
    await client.write_file("fusion/ctl", "fusion quorum 3 min_consensus=2\nmax_tokens 9\nsystem Be brief.\n")
    lines = "max_tokens 9\nsystem Be brief.\nfusion quorum 3 min_consensus=2\n"
    assert (await client.read_file("fusion/ctl")).decode() == lines
    async with client.open("fusion/data", "rw") as data:
        assert await ask(data) == "four"
    (request,) = world.cluster.requests
    assert request.messages == (Message("system", "Be brief."), Message("user", "2+2?"))
    assert request.fusion == FusionRequest("quorum", 3, 2)
    assert (request.sampling.max_tokens, request.interface) == (9, "styx")
    document = json.loads(await client.read_file("fusion/last-result"))
    assert {"text", "finish_reason", "model", "node", "tokens", "prompt_tokens", "cached_tokens"} <= set(document)
    assert (document["text"], document["node"], document["ttft_ms"]) == ("four", "n1", 1.5)
    assert fusion_of(document["fusion"]) == OUTCOME
    assert (await client.read_file("fusion/tally")).decode() == LINES
    with pytest.raises(BadRequest, match="fusion off means nothing here"):
        await client.write_file("fusion/ctl", "fusion off")


async def test_the_tally_of_the_directory_follows_the_fusion_that_runs(world: World, client: AsyncClient) -> None:
    fuses(world)
    gate = world.cluster.gate = Gate(2)
    async with client.open("fusion/data", "rw") as data:
        asking = asyncio.create_task(ask(data))
        await until(lambda: world.cluster.requests)
        async with client.open("fusion/tally") as tally:
            said = b""
            while said.count(b"\n") < 2:
                said += await tally.read()
            assert await client.read_file("fusion/last-result") == b"null\n", "nothing has ended"
            gate.set()
            assert (said + await tally.read_all()).decode() == LINES
        assert await asking == "four"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoQuorum("no quorum: 1 of 3 nodes agree, 2 are needed"), True),
        (EngineFailed("every node failed"), False),
    ],
)
async def test_the_last_result_says_why_there_is_none(
    world: World, client: AsyncClient, error: NoQuorum | EngineFailed, told: bool
) -> None:
    world.cluster.pieces = [*CASTS, error]
    async with client.open("fusion/data", "rw") as data:
        await data.write("2+2?")
        with pytest.raises(type(error)):
            await data.read_all()
    document = json.loads(await client.read_file("fusion/last-result"))
    assert document["error"] == {"code": error.code, "message": error.message}
    if told:
        outcome = fusion_of(document["fusion"])
        assert (outcome.strategy, outcome.asked, outcome.answered, outcome.votes) == ("quorum", 3, 2, OUTCOME.votes)
    else:
        assert document["fusion"] is None


async def test_who_closes_the_question_ends_the_fusion(world: World, client: AsyncClient) -> None:
    fuses(world)
    world.cluster.gate = Gate(1)
    async with client.open("fusion/data", "rw") as data:
        asking = asyncio.create_task(ask(data))
        await until(lambda: world.cluster.requests)
        asking.cancel()
    await until(world.cluster.closed.is_set)
    assert json.loads(await client.read_file("fusion/last-result"))["error"]["code"] == "cancelled"


async def test_what_one_node_answers_is_no_fusion(world: World, client: AsyncClient) -> None:
    async with client.open("data", "rw") as data:
        await ask(data)
    assert await client.read_file("fusion/last-result") == b"null\n"
    assert await client.read_file("fusion/tally") == b""


async def test_what_one_token_asks_and_sets_is_not_there_for_another(world: World, client: AsyncClient) -> None:
    fuses(world)
    async with await world.client("infer") as other:
        await other.write_file("fusion/ctl", "fusion quorum 5")
        async with other.open("fusion/data", "rw") as data:
            assert await ask(data) == "four"
        assert (await other.read_file("fusion/tally")).decode() == LINES
    assert await client.read_file("fusion/ctl") == b"fusion\n"
    assert await client.read_file("fusion/last-result") == b"null\n"
    assert await client.read_file("fusion/tally") == b""
