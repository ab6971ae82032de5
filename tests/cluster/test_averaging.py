"""Several real nodes write one text together, token by token."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from bench import make_model
from llambo.cluster.api import Cluster
from llambo.cluster.launch.base import NodeHandle
from llambo.cluster.upstream import open_upstream
from llambo.core import config
from llambo.core.errors import BadRequest, EngineFailed, NodeLost, PromptTooLong, TimedOut
from llambo.core.fusion import Fusion, FusionRequest, VoteCast
from llambo.core.types import Done, GenerateRequest, LoadOptions, Message, Sampling, TokenEvent
from tests.cluster.clusters import until

SMALL = LoadOptions(ctx=512, slots=1, threads=1)
GREEDY = Sampling(max_tokens=8, temperature=0)
ENDLESS = Sampling(temperature=0)
QUESTION = "What is a node?"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


def ask(
    sampling: Sampling = GREEDY,
    voters: int = 3,
    *,
    prompt: str = "hello",
    model: str = "",
    stop: tuple[str, ...] = (),
    logprobs: bool = False,
    **more: str,
) -> GenerateRequest:
    return GenerateRequest(
        messages=(Message("user", prompt),),
        model=model,
        sampling=sampling,
        stop=stop,
        logprobs=logprobs,
        fusion=FusionRequest("token-average", voters, extract=more.pop("extract", "")),
        **more,  # type: ignore[arg-type]
    )


def plainly(request: GenerateRequest) -> GenerateRequest:
    return GenerateRequest(messages=request.messages, model=request.model, sampling=request.sampling, stop=request.stop)


async def text_of(cluster: Cluster, request: GenerateRequest) -> str:
    return "".join([event.text async for event in cluster.generate(request) if isinstance(event, TokenEvent)])


async def collect(cluster: Cluster, request: GenerateRequest) -> tuple[list[TokenEvent], list[VoteCast], Done]:
    """The tokens, the votes after them, and the end."""
    events = [event async for event in cluster.generate(request)]
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    casts = [event for event in events if isinstance(event, VoteCast)]
    assert [type(event) for event in events] == [TokenEvent] * len(tokens) + [VoteCast] * len(casts) + [Done]
    assert isinstance(events[-1], Done)
    return tokens, casts, events[-1]


def outcome(done: Done) -> Fusion:
    assert done.fusion is not None
    return done.fusion


def is_calm(cluster: Cluster) -> bool:
    return not cluster.status().busy and not cluster._world.flights


async def serve(cluster: Cluster, model: Path, nodes: int) -> None:
    await cluster.load(str(model), options=SMALL)
    if nodes > 1:
        await cluster.spawn(nodes - 1, model=model.stem)


async def test_nodes_of_one_model_write_what_each_would_and_the_text_ends_where_it_does() -> None:
    async with Cluster() as cluster:
        await cluster.spawn(3, node_type="tiny")
        request = ask(ENDLESS, prompt=QUESTION)
        whole = await text_of(cluster, plainly(request))
        tokens, casts, done = await collect(cluster, request)
        assert "".join(event.text for event in tokens) == whole
        assert all(event.ids for event in tokens)
        assert all(event.logprob is None for event in tokens)
        assert (done.finish_reason, done.tokens) == ("stop", sum(len(event.ids) for event in tokens))
        fusion = outcome(done)
        assert (fusion.asked, fusion.answered, fusion.cancelled) == (3, 3, 0)
        assert 0.9 < fusion.agreement <= 1
        assert [cast.answered for cast in casts] == [1, 2, 3]
        assert {cast.vote.node for cast in casts} == {"n1", "n2", "n3"}
        assert all((cast.vote.text, cast.vote.tokens) == (whole, done.tokens) for cast in casts)
        assert 0 < done.ttft_ms < done.time_ms
        assert done.prompt_tokens > done.cached_tokens >= 0
        again = (await collect(cluster, request))[2]
        assert again.cached_tokens > 0, "the prompt is warm now"
        assert is_calm(cluster)


async def test_a_text_ends_at_its_limit_at_a_stop_text_or_with_the_context(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 2)
    tokens, _, done = await collect(cluster, ask())
    assert (len(tokens), done.finish_reason, done.tokens) == (8, "length", 8)
    whole = await text_of(cluster, plainly(ask()))
    stop = whole[9:12]
    tokens, _, done = await collect(cluster, ask(stop=(stop,)))
    assert "".join(event.text for event in tokens) == whole[: whole.index(stop)]
    assert done.finish_reason == "stop"
    tokens, _, done = await collect(cluster, ask(ENDLESS))
    assert done.finish_reason == "length"
    assert 512 - 4 <= done.prompt_tokens + done.tokens <= 512
    with pytest.raises(PromptTooLong, match="the context holds 512"):
        await collect(cluster, ask(prompt="long " * 2000))
    assert is_calm(cluster)


async def test_a_seeded_text_is_repeatable_and_a_temperature_counts(cluster: Cluster, tiny_model: Path) -> None:
    await serve(cluster, tiny_model, 2)

    async def write(seed: int | None, temperature: float) -> str:
        return await text_of(cluster, ask(Sampling(max_tokens=12, temperature=temperature, seed=seed), 2))

    assert await write(3, 1.5) == await write(3, 1.5) != await write(4, 1.5)
    assert await write(None, 1.5) != await write(None, 1.5)
    assert await write(3, 0) == await write(4, 0)


async def test_models_that_share_a_vocabulary_mix(cluster: Cluster, walk_model: Path, tmp_path: Path) -> None:
    other = make_model.write(tmp_path / "other.gguf", make_model.PRESETS["tiny"], walk=True, seed=2)
    await serve(cluster, walk_model, 1)
    await serve(cluster, other, 1)
    tokens, casts, done = await collect(cluster, ask(Sampling(max_tokens=6, temperature=0), 2, logprobs=True))
    assert {cast.vote.model for cast in casts} == {"walk", "other"}
    assert outcome(done).agreement <= 0.6, "they walk different ways: a token is the choice of one of them"
    assert all(event.logprob is not None and event.logprob < 0 for event in tokens)


async def test_models_with_other_vocabularies_are_refused(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 1)
    await cluster.load("built-in", options=SMALL)
    with pytest.raises(BadRequest, match="token-average takes models that share a vocabulary, and these do not"):
        await collect(cluster, ask())
    assert is_calm(cluster)
    _, casts, _ = await collect(cluster, ask(model="built-in"))
    assert {cast.vote.model for cast in casts} == {"built-in"}


async def test_a_node_takes_part_once_however_many_are_asked(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 2)
    _, casts, done = await collect(cluster, ask(voters=7))
    assert {cast.vote.node for cast in casts} == {"n1", "n2"}
    assert (outcome(done).asked, outcome(done).answered, outcome(done).cancelled) == (7, 2, 5)


async def test_two_texts_that_want_the_same_nodes_are_both_written(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 2)
    both = await asyncio.gather(collect(cluster, ask()), collect(cluster, ask()))
    texts = {"".join(event.text for event in tokens) for tokens, _, _ in both}
    assert texts == {await text_of(cluster, plainly(ask()))}
    assert is_calm(cluster)


async def test_a_node_that_dies_is_left_out_and_the_text_goes_on(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 3)
    request = ask(Sampling(max_tokens=40, temperature=0))
    whole = await text_of(cluster, plainly(request))
    pid = next(info.pid for info in await cluster.nodes() if info.id == "n2")
    text, casts, done = "", [], None
    async for event in cluster.generate(request):
        match event:
            case TokenEvent():
                text += event.text
                if len(text) > 20 and pid:
                    os.kill(pid, signal.SIGKILL)
                    pid = 0
            case VoteCast():
                casts.append(event)
            case Done():
                done = event
    assert text == whole
    assert done is not None
    assert (outcome(done).answered, outcome(done).cancelled) == (2, 0)
    (lost,) = (cast.vote for cast in casts if cast.vote.error)
    assert (lost.node, lost.text, lost.tokens, lost.weight) == ("n2", "", 0, 0)
    assert "n2" in lost.error
    await until(lambda: is_calm(cluster))


async def test_when_the_last_node_dies_its_error_is_told(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 1)
    (node,) = await cluster.nodes()
    with pytest.raises(NodeLost):
        async for event in cluster.generate(ask(ENDLESS)):
            assert isinstance(event, TokenEvent)
            os.kill(node.pid, signal.SIGKILL)
    await until(lambda: is_calm(cluster))


async def test_a_node_that_hangs_is_left_out_in_time(walk_model: Path) -> None:
    quick = config.Settings.model_validate({"cognition": {"timeout": "2s"}})
    async with Cluster(quick) as cluster:
        await serve(cluster, walk_model, 2)
        request = ask(Sampling(max_tokens=30, temperature=0))
        whole = await text_of(cluster, plainly(request))
        pids = {info.id: info.pid for info in await cluster.nodes()}
        text = ""
        async for event in cluster.generate(request):
            if isinstance(event, TokenEvent):
                text += event.text
                os.kill(pids["n2"], signal.SIGSTOP)
            elif isinstance(event, VoteCast) and event.vote.node == "n2":
                assert event.vote.error == "no next token within 2 s"
        assert text == whole
        os.kill(pids["n1"], signal.SIGSTOP)
        with pytest.raises(TimedOut, match=r"within 2 s"):
            await collect(cluster, request)
        assert is_calm(cluster)


async def test_who_leaves_frees_every_node(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 2)
    async with aclosing(cluster.generate(ask(ENDLESS))) as events:
        assert isinstance(await anext(events), TokenEvent)
        assert cluster.status().busy == 2
    assert is_calm(cluster)
    leaving = asyncio.create_task(collect(cluster, ask(ENDLESS)))
    await until(lambda: cluster.status().busy == 2)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert is_calm(cluster)


async def test_what_it_cannot_honour_is_refused(cluster: Cluster, walk_model: Path) -> None:
    await serve(cluster, walk_model, 1)
    for more in ({"grammar": 'root ::= "a"'}, {"json_schema": "{}"}):
        with pytest.raises(BadRequest, match="token-average takes no grammar and no JSON schema"):
            await collect(cluster, ask(**more))
    with pytest.raises(BadRequest, match="makes one text and compares none: leave extract out"):
        await collect(cluster, ask(extract="a"))


# --- one step -----------------------------------------------------------------------------------------------------


async def test_a_node_tells_the_likeliest_next_tokens_and_where_its_own_choice_ends_the_text() -> None:
    async with Cluster() as cluster:
        await cluster.spawn(1, node_type="tiny")
        place = cluster._runtime.place_of("n1")
        assert place is not None
        upstream = place.upstream
        prompt = await upstream.prompt_text(plainly(ask(prompt=QUESTION)))
        ids = await upstream.tokenize(prompt, add_special=True)
        text = b""
        while not (view := await upstream.next_token(ids)).ends:
            shares = [math.exp(candidate.logprob) for candidate in view.candidates]
            assert shares == sorted(shares, reverse=True)
            assert 0.5 < sum(shares) <= 1 + 1e-6
            assert view.prompt_tokens == len(ids)
            text += view.candidates[0].piece
            ids.append(view.candidates[0].id)
        assert view.cached_tokens == len(ids) - 1, "one token is computed at a time"
        assert text.decode() == await text_of(cluster, plainly(ask(ENDLESS, prompt=QUESTION)))
        with pytest.raises(PromptTooLong):
            await upstream.next_token(ids * 40)
        with pytest.raises(BadRequest):
            await upstream.next_token([2**30])


async def test_a_server_with_the_openai_api_alone_cannot_take_part() -> None:
    handle = NodeHandle("far", 0, "http://127.0.0.1:9", "there", 1, 0, "m", features=frozenset({"generate"}))
    upstream = open_upstream(handle)
    with pytest.raises(EngineFailed, match="node far has only the OpenAI API, which takes no token ids"):
        await upstream.next_token([1])
    await upstream.close()
