"""A request's way over real nodes: contexts that differ, nodes that hang, and what never reaches a node."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from llambo.cluster.api import Cluster
from llambo.core.errors import BadRequest, PromptTooLong
from llambo.core.types import Done, Event, GenerateRequest, LoadOptions, Sampling
from tests.cluster.clusters import quick, until

LONG = Sampling(max_tokens=1200, temperature=0)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(quick(load_balancer={"timeout": "3s"})) as cluster:
        yield cluster


async def test_an_answer_past_the_context_that_was_asked_for_fails_over_whole(
    cluster: Cluster, walk_model: Path
) -> None:
    """llama.cpp rounds a context of 100 up to 256, and so answers of more than 100 tokens are whole."""
    await cluster.load(str(walk_model), options=LoadOptions(ctx=100, slots=1, threads=1))
    request = GenerateRequest(raw_prompt="hello", sampling=Sampling(max_tokens=200, temperature=0))
    *whole, end = [event async for event in cluster.generate(request)]
    assert len(whole) == 200
    assert isinstance(end, Done)
    failovers = 0
    while not failovers:  # an answer may be whole in the pipe when its node is killed
        events: list[Event] = []
        async for event in cluster.generate(request):
            events.append(event)
            if len(events) == 110:
                busy = next((node for node in await cluster.nodes() if node.busy), (await cluster.nodes())[0])
                os.kill(busy.pid, signal.SIGKILL)
                await cluster.spawn(1)
        *tokens, done = events
        assert tokens == whole
        assert isinstance(done, Done)
        assert (done.tokens, done.finish_reason) == (200, end.finish_reason)
        failovers = done.failovers
        await until(lambda: cluster.cluster_status().nodes.ready == cluster.cluster_status().nodes.total)
    assert failovers == 1


async def test_an_answer_is_never_cut_short_by_a_smaller_node(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=LoadOptions(ctx=2048, slots=1, threads=1))
    big = (await cluster.nodes())[0]
    given = 0
    request = GenerateRequest(raw_prompt="hello", sampling=LONG)
    with pytest.raises(PromptTooLong, match="another node took over, and its context of 512"):
        async with aclosing(cluster.generate(request)) as events:
            async for event in events:
                assert not isinstance(event, Done)
                given += 1
                if given == 700:
                    await cluster.spawn(1, node_type="tiny", slots=1)
                    assert {node.ctx for node in await cluster.nodes()} == {512, 2048}
                    await cluster.kill(big.id)
    assert given >= 700


@pytest.mark.parametrize("is_known", [False, True])
async def test_tokenizing_goes_past_a_node_that_hangs(cluster: Cluster, walk_model: Path, is_known: bool) -> None:
    await cluster.load(str(walk_model), options=LoadOptions(ctx=256, slots=1, threads=1))
    await cluster.spawn(1)
    ids = await cluster.tokenize("hello")
    os.kill((await cluster.nodes())[0].pid, signal.SIGSTOP)
    if is_known:
        await until(lambda: cluster.cluster_status().problems)
    took_s: list[float] = []
    for _ in range(3 if is_known else 1):
        began = time.monotonic()
        assert await cluster.tokenize("hello") == ids
        took_s.append(time.monotonic() - began)
    assert min(took_s) < (0.5 if is_known else 6), "the best counts: a busy machine may add to one"


async def test_a_grammar_that_would_end_nodes_reaches_none(cluster: Cluster, walk_model: Path) -> None:
    await cluster.load(str(walk_model), options=LoadOptions(ctx=256, slots=1, threads=1))
    deep = "root ::= " + "(" * 1000 + '"a"' + ")" * 1000
    with pytest.raises(BadRequest, match="parentheses"):
        await anext(cluster.generate(GenerateRequest(raw_prompt="x", grammar=deep)))
    assert [(node.epoch, node.requests) for node in await cluster.nodes()] == [(1, 0)]
