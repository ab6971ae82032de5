"""The door of a cluster in this process, with real nodes behind it."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import psutil
import pytest

from llambo.cluster.api import Cluster
from llambo.cluster.world import Policy
from llambo.core import config
from llambo.core.errors import (
    BadModel,
    LlamboError,
    NameInUse,
    NodeLost,
    NoMemory,
    NoModel,
    NotFound,
    Overloaded,
    PromptTooLong,
)
from llambo.core.types import Done, Event, GenerateRequest, LoadOptions, ModelInfo, Sampling, TokenEvent

SMALL = LoadOptions(ctx=256, slots=2, threads=1)
GREEDY = Sampling(max_tokens=8, temperature=0)
ENDLESS = Sampling(temperature=0)
LONG = Sampling(max_tokens=400, temperature=0)


def ask(prompt: str, sampling: Sampling = GREEDY, *, model: str = "") -> GenerateRequest:
    return GenerateRequest.from_prompt(prompt, model=model, sampling=sampling)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


async def collect(cluster: Cluster, request: GenerateRequest) -> list[Event]:
    return [event async for event in cluster.generate(request)]


async def test_an_answer_is_token_events_and_exactly_one_done(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=SMALL)
    *tokens, done = await collect(cluster, ask("hello"))
    assert len(tokens) == 8
    assert all(isinstance(event, TokenEvent) for event in tokens)
    assert isinstance(done, Done)
    assert (done.finish_reason, done.model, done.node, done.tokens) == ("length", "walk", "n1", 8)
    assert 0 < done.ttft_ms <= done.time_ms


async def test_a_prompt_goes_through_the_template_unless_it_is_raw(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=SMALL)
    chat = (await collect(cluster, ask("hello")))[-1]
    raw = (await collect(cluster, GenerateRequest.from_prompt("hello", raw=True, sampling=GREEDY)))[-1]
    assert isinstance(chat, Done)
    assert isinstance(raw, Done)
    assert chat.prompt_tokens > raw.prompt_tokens


async def test_models_are_found_by_name_and_the_first_is_the_default(
    cluster: Cluster, walk_model: Path, tiny_model: Path
) -> None:
    await cluster.load(str(walk_model), options=SMALL)
    await cluster.load(str(tiny_model), name="other", options=SMALL)
    assert [(m.name, m.is_default) for m in cluster.status().models] == [("walk", True), ("other", False)]
    done = (await collect(cluster, ask("hello", model="other")))[-1]
    assert isinstance(done, Done)
    assert done.model == "other"
    with pytest.raises(NotFound, match="no model is called 'third'; loaded are walk, other"):
        await collect(cluster, ask("hello", model="third"))


async def test_without_a_model_every_question_says_so(cluster: Cluster) -> None:
    with pytest.raises(NoModel, match="no model is loaded"):
        await collect(cluster, ask("hello"))
    with pytest.raises(NoModel):
        await cluster.free()
    with pytest.raises(NoModel):
        await cluster.tokenize("hello")


async def test_free_ends_the_node_and_the_next_model_becomes_the_default(
    cluster: Cluster, walk_model: Path, tiny_model: Path
) -> None:
    first = await cluster.load(str(walk_model), options=SMALL)
    await cluster.load(str(tiny_model), options=SMALL)
    await cluster.free()
    assert not psutil.pid_exists(first.pid)
    assert [(m.name, m.is_default) for m in cluster.status().models] == [("tiny", True)]


async def test_two_equal_loads_at_once_are_one(cluster: Cluster, walk_model: Path) -> None:
    first, second = await asyncio.gather(*(cluster.load(str(walk_model), options=SMALL) for _ in range(2)))
    assert first == second
    again = await cluster.load(str(walk_model), options=SMALL)
    assert again.pid == first.pid
    assert len(cluster.status().models) == 1


async def test_a_name_belongs_to_one_model(cluster: Cluster, walk_model: Path, tiny_model: Path) -> None:
    results = await asyncio.gather(
        cluster.load(str(walk_model), name="m", options=SMALL),
        cluster.load(str(tiny_model), name="m", options=SMALL),
        return_exceptions=True,
    )
    assert isinstance(results[0], ModelInfo)
    assert isinstance(results[1], NameInUse)
    with pytest.raises(NameInUse, match=r"'m' is .*walk\.gguf already"):
        await cluster.load(str(tiny_model), name="m", options=SMALL)
    with pytest.raises(NameInUse):
        await cluster.load(str(walk_model), name="m", options=replace(SMALL, slots=1))


async def test_a_model_can_be_freed_while_it_loads(cluster: Cluster, walk_model: Path) -> None:
    loading = asyncio.create_task(cluster.load(str(walk_model), options=SMALL))
    await asyncio.sleep(0)
    await cluster.free("walk")
    with pytest.raises(NoModel, match="freed before it was loaded"):
        await loading
    assert cluster.status().models == ()
    await cluster.load(str(walk_model), options=SMALL)  # and be loaded again


async def test_a_load_that_nobody_waits_for_any_more_is_given_up(cluster: Cluster, walk_model: Path) -> None:
    waiting = [asyncio.create_task(cluster.load(str(walk_model), options=SMALL)) for _ in range(2)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert (await waiting[1]).state == "ready", "one who waits is enough"
    await cluster.free()
    alone = asyncio.create_task(cluster.load(str(walk_model), options=SMALL))
    await asyncio.sleep(0)
    alone.cancel()
    joining = asyncio.create_task(cluster.load(str(walk_model), options=SMALL))
    with pytest.raises(asyncio.CancelledError):
        await alone
    assert (await joining).state == "ready", "who comes while it is given up gets a load of its own"
    last = asyncio.create_task(cluster.load(str(walk_model), name="last", options=SMALL))
    await asyncio.sleep(0)
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last
    await cluster.free()
    with pytest.raises(NoModel):
        await cluster.free()
    await until_only_the_zygote_lives()


async def until_only_the_zygote_lives() -> None:
    async with asyncio.timeout(10):
        while len(psutil.Process().children(recursive=True)) > 1:
            await asyncio.sleep(0)


async def test_free_during_a_second_equal_load_frees_the_model(cluster: Cluster, walk_model: Path) -> None:
    info = await cluster.load(str(walk_model), options=SMALL)
    again = asyncio.create_task(cluster.load(str(walk_model), options=SMALL))
    await asyncio.sleep(0)
    await cluster.free("walk")
    with pytest.raises(NoModel):
        await again
    assert cluster.status().models == ()
    assert not psutil.pid_exists(info.pid)


async def test_free_ends_a_node_for_embeddings_that_is_starting(cluster: Cluster, tiny_model: Path) -> None:
    await cluster.load(str(tiny_model), options=SMALL)
    embedding = asyncio.create_task(cluster.embed("a cat"))
    async with asyncio.timeout(10):
        while len(psutil.Process().children(recursive=True)) < 3:
            await asyncio.sleep(0)
    await cluster.free()
    with pytest.raises(LlamboError):
        await embedding
    await until_only_the_zygote_lives()


async def test_a_free_that_is_cancelled_still_frees_everything(cluster: Cluster, tiny_model: Path) -> None:
    await cluster.load(str(tiny_model), options=SMALL)
    await cluster.embed("a cat")
    freeing = asyncio.create_task(cluster.free())
    await asyncio.sleep(0)
    freeing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await freeing
    assert cluster.status().models == ()
    await until_only_the_zygote_lives()


async def test_free_while_the_node_comes_back_leaves_none(cluster: Cluster, walk_model: Path) -> None:
    info = await cluster.load(str(walk_model), options=SMALL)
    os.kill(info.pid, signal.SIGKILL)
    await until_state(cluster, "restarting")
    await cluster.free()
    await until_only_the_zygote_lives()
    assert cluster.status().models == ()


async def test_free_ends_a_stream_that_waits_for_its_next_token(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=replace(SMALL, ctx=2048, slots=1))
    answers = [asyncio.create_task(collect(cluster, ask("hello", ENDLESS))) for _ in range(3)]
    while cluster.status().busy == 0:
        await asyncio.sleep(0)
    await cluster.free()
    async with asyncio.timeout(10):
        results = await asyncio.gather(*answers, return_exceptions=True)
    assert all(isinstance(result, NodeLost | NoModel) for result in results)


async def test_free_ends_streams_in_flight_with_an_error(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=replace(SMALL, ctx=2048))
    async with aclosing(cluster.generate(ask("hello", ENDLESS))) as events:
        await anext(events)
        await cluster.free()
        with pytest.raises(NodeLost, match="its model was freed"):
            async for _ in events:
                pass


async def test_free_sends_waiting_requests_away(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=replace(SMALL, slots=1, ctx=2048))
    async with aclosing(cluster.generate(ask("hello", ENDLESS))) as events:
        await anext(events)
        waiting = asyncio.create_task(collect(cluster, ask("hello")))
        await asyncio.sleep(0)
        await cluster.free()
        with pytest.raises(NoModel, match="walk was freed"):
            await waiting


async def test_a_stream_goes_on_when_its_only_node_is_killed(cluster: Cluster, walk_model: Path) -> None:
    info = await cluster.load(str(walk_model), options=replace(SMALL, ctx=2048))
    whole = text_of(await collect(cluster, ask("hello", LONG)))
    async with aclosing(cluster.generate(ask("hello", LONG))) as events:
        received = [await anext(events)]
        os.kill(info.pid, signal.SIGKILL)
        received += [event async for event in events]
    done = received[-1]
    assert isinstance(done, Done)
    assert (done.failovers, done.node, done.tokens) == (1, "n1", 400)
    assert text_of(received) == whole
    assert cluster.status().models[0].pid != info.pid
    assert cluster.status().counters.errors == 0


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, TokenEvent))


async def test_a_node_that_dies_again_and_again_is_given_up(cluster: Cluster, walk_model: Path) -> None:
    info = await cluster.load(str(walk_model), options=SMALL)
    for _ in range(Policy().max_crashes):
        os.kill(info.pid, signal.SIGKILL)
        await until_state(cluster, "restarting")
        await collect(cluster, ask("hello"))
        info = cluster.status().models[0]
    os.kill(info.pid, signal.SIGKILL)
    await until_state(cluster, "failed")
    with pytest.raises(NodeLost, match=r"its node died 4 times in a minute \(it was killed by signal 9"):
        await collect(cluster, ask("hello"))
    await cluster.load(str(walk_model), options=SMALL)  # the same again is a fresh start
    await collect(cluster, ask("hello"))


async def until_state(cluster: Cluster, state: str) -> None:
    async with asyncio.timeout(10):
        while not cluster.status().models[0].state.startswith(state):
            await asyncio.sleep(0)


async def test_more_requests_than_slots_wait_their_turn(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=SMALL)
    answers = await asyncio.gather(*(collect(cluster, ask(f"hello {i}")) for i in range(20)))
    assert all(isinstance(answer[-1], Done) for answer in answers)
    assert cluster.status().busy == 0


async def test_more_requests_than_the_queue_holds_are_refused_at_once(walk_model: Path) -> None:
    settings = config.Settings(orchestrator=config.Orchestrator(queue_limit=2))
    async with Cluster(settings) as cluster:
        await cluster.load(str(walk_model), options=replace(SMALL, slots=1))
        results = await asyncio.gather(*(collect(cluster, ask("hello")) for _ in range(10)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Overloaded)]
    assert len(refused) == 7
    assert sum(isinstance(result, list) for result in results) == 3


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=SMALL)
    with pytest.raises(PromptTooLong, match=r"has \d+ tokens and the context holds 256"):
        await collect(cluster, ask("hello " * 500))


async def test_the_context_bounds_an_answer_without_max_tokens(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=SMALL)
    done = (await collect(cluster, ask("hello", ENDLESS)))[-1]
    assert isinstance(done, Done)
    assert done.finish_reason == "length"
    assert done.prompt_tokens + done.tokens <= 256 + 1


async def test_embeddings_come_from_a_node_of_their_own(cluster: Cluster, tiny_model: Path) -> None:
    await cluster.load(str(tiny_model), options=SMALL)
    one, same, other = [await cluster.embed(text) for text in ("a cat", "a cat", "quantum")]
    assert len(one) == 128
    assert math.isclose(sum(x * x for x in one), 1, abs_tol=1e-4)
    assert one == same != other
    with pytest.raises(PromptTooLong, match=r"has \d+ tokens and the context holds 256"):
        await cluster.embed("cat " * 600)
    await cluster.free()
    assert len(psutil.Process().children(recursive=True)) == 1, "only the zygote is left"


def write_gguf(path: Path, architecture: str) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_tensor("token_embd.weight", np.zeros((8, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"not a model at all", "GGUF"),
        (b"GGUF", "truncated"),
    ],
)
async def test_what_is_no_model_is_refused_before_anything_starts(
    cluster: Cluster, tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    path = tmp_path / "bad.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadModel, match=complaint):
        await cluster.load(str(path), options=SMALL)
    assert not psutil.Process().children(recursive=True)


async def test_a_directory_another_architecture_and_a_truncated_file_are_refused(
    cluster: Cluster, tmp_path: Path, walk_model: Path
) -> None:
    with pytest.raises(BadModel, match="directory"):
        await cluster.load(str(tmp_path), options=SMALL)
    with pytest.raises(BadModel, match="martian"):
        await cluster.load(str(write_gguf(tmp_path / "m.gguf", "martian")), options=SMALL)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(walk_model.read_bytes()[:-1000])
    with pytest.raises(BadModel, match="1,000 are missing"):
        await cluster.load(str(cut), options=SMALL)


async def test_a_model_that_does_not_fit_is_refused_and_what_ran_goes_on_running(
    cluster: Cluster, walk_model: Path
) -> None:
    await cluster.load(str(walk_model), options=SMALL)
    with pytest.raises(NoMemory, match="GiB"):
        await cluster.load(str(walk_model), name="big", options=LoadOptions(ctx=2**24, slots=256))
    assert isinstance((await collect(cluster, ask("hello")))[-1], Done)


async def test_closing_ends_everything_that_is_in_flight(walk_model: Path) -> None:
    async with Cluster() as cluster:
        await cluster.load(str(walk_model), options=replace(SMALL, ctx=2048))
        events = cluster.generate(ask("hello", ENDLESS))
        await anext(events)
        loading = asyncio.create_task(cluster.load(str(walk_model), name="second", options=SMALL))
        await asyncio.sleep(0)
    with pytest.raises(LlamboError):
        async for _ in events:
            pass
    with pytest.raises((LlamboError, asyncio.CancelledError)):
        await loading
    assert not psutil.Process().children(recursive=True)
