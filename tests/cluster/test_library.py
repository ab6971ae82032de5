"""The cluster as Python programs have it: a private one, and one that runs, with real nodes and a real daemon."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import psutil
import pytest

import llambo
from llambo import errors
from llambo.cli import running
from llambo.cluster.control import ClusterEvent
from llambo.core.fusion import VoteCast
from llambo.library import Connection
from tests.cli import daemons

USAGE = (Path(__file__).parents[2] / "docs" / "usage.md").read_text(encoding="utf-8")
Either = llambo.Cluster | Connection


async def check_answers(cluster: Either) -> None:
    """Every way to ask gives the same greedy answer, with its counts."""
    text = await cluster.infer("hello", max_tokens=6, temperature=0)
    async with aclosing(cluster.stream("hello", max_tokens=6, temperature=0)) as tokens:
        *pieces, last = [token async for token in tokens]
    assert "".join(token.text for token in pieces) == text != ""
    assert (last.final, last.tokens, last.finish_reason) == (True, 6, "length")
    whole = await cluster.chat([llambo.Message("user", "hello")], max_tokens=6, temperature=0)
    assert (whole.text, whole.tokens, whole.node[:1], whole.prompt_tokens) == (text, 6, "n", last.prompt_tokens)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    longer = await cluster.chat(turns, system="d", max_tokens=1, temperature=0)
    assert longer.prompt_tokens is not None
    assert whole.prompt_tokens is not None
    assert longer.prompt_tokens > whole.prompt_tokens


async def check_nodes(cluster: Either) -> None:
    """One node more is told of, is there, and goes again."""

    async def first() -> ClusterEvent:
        async with aclosing(cluster.events()) as events:
            return await anext(events)

    before = (await cluster.status()).nodes
    told = asyncio.create_task(first())
    await asyncio.sleep(0)  # its first step; what it sends then comes before all that follows
    (node,) = await cluster.spawn(1)
    event = await told
    assert (event.kind, event.fields["node"], node.state) == ("node_starting", node.id, "ready")
    assert (await cluster.status()).nodes.total == before.total + 1
    assert len(await cluster.scale(before.total)) == before.total
    assert (await cluster.status()).nodes.total == before.total


async def check_fusion(cluster: Either) -> None:
    """Several nodes' answer has the outcome with it, and each vote is heard of; or there is no quorum."""
    text = await cluster.infer("hello", max_tokens=6, temperature=0)
    heard: list[VoteCast] = []
    fused = await cluster.fuse("hello", "majority-vote", 3, on_vote=heard.append, max_tokens=6, temperature=0)
    assert (str(fused), fused.tokens, fused.finish_reason) == (text, 6, "length")
    assert fused.fusion is not None
    assert (fused.fusion.strategy, fused.fusion.asked, fused.fusion.agreement) == ("majority-vote", 3, 1.0)
    assert [vote.text for vote in fused.fusion.votes] == [text] * len(heard)
    assert [cast.vote for cast in heard] == list(fused.fusion.votes)
    left_open = await cluster.fuse([{"role": "user", "content": "hello"}], max_tokens=6, temperature=0, seed=1)
    assert left_open.fusion is not None
    assert (left_open.text, left_open.fusion.strategy, left_open.fusion.asked) == (text, "majority-vote", 3)
    written = await cluster.fuse("hello", "token-average", 2, max_tokens=6, temperature=0)
    assert (written.text, written.tokens) == (text, 6)
    with pytest.raises(errors.NoQuorum, match="no quorum: 0 of 3 nodes agree, 2 are needed"):
        await cluster.fuse("hello", "raft-consensus", 3, extract="nowhere", max_tokens=6)
    with pytest.raises(errors.BadRequest, match="no fusion strategy is called 'loudest'; there are majority-vote"):
        await cluster.fuse("hello", "loudest")
    with pytest.raises(errors.BadRequest, match="fusion takes between 2 and 64 nodes, not 1"):
        await cluster.fuse("hello", nodes=1)
    with pytest.raises(errors.TimedOut, match=r"the answer was not whole within 0\.001 s"):
        await cluster.fuse("hello", timeout_s=0.001)


async def check_refusals(cluster: Either) -> None:
    """What cannot be is refused in words, and nothing is left of it."""
    with pytest.raises(TypeError, match=r"unknown option 'max_token'; known are grammar, json_schema, logprobs, max_t"):
        await cluster.infer("a", max_token=3)  # type: ignore[call-arg]
    with pytest.raises(errors.BadRequest, match="a message's role is one of system, user, assistant, not 'robot'"):
        await cluster.chat([{"role": "robot", "content": "a"}])
    with pytest.raises(errors.BadRequest, match="raw takes one prompt, not a conversation of 2 messages"):
        await cluster.chat([llambo.Message("user", "a")] * 2, raw=True)
    with pytest.raises(errors.NotFound, match="no model is called 'nobody'"):
        await cluster.infer("a", model="nobody")
    with pytest.raises(errors.BadRequest, match="at least 1, not 0"):
        await cluster.spawn(0)
    with pytest.raises(errors.TimedOut, match=r"the answer was not whole within 0\.001 s"):
        await cluster.infer("a", timeout_s=0.001)
    with pytest.raises(errors.TimedOut, match=r"no token came within 0\.0001 s"):
        async with aclosing(cluster.stream("a", timeout_s=0.0001)) as tokens:
            await anext(tokens)


async def test_a_private_cluster_answers_and_obeys_and_is_gone_with_its_block(tiny_model: Path) -> None:
    async with llambo.Cluster(nodes=2, model=str(tiny_model), node_type="tiny") as cluster:
        assert (await cluster.status()).nodes.ready == 2
        await check_answers(cluster)
        await check_fusion(cluster)
        await check_nodes(cluster)
        await check_refusals(cluster)
        with pytest.raises(errors.LlamboError, match="the cluster is open already"):
            await cluster.__aenter__()
    with pytest.raises(errors.LlamboError, match="the cluster is not open: use it inside `async with`"):
        await cluster.infer("hello")
    assert not psutil.Process().children(recursive=True)


async def test_a_private_cluster_that_cannot_start_leaves_nothing(tmp_path: Path) -> None:
    cluster = llambo.Cluster(model=str(tmp_path / "none.gguf"))
    with pytest.raises(errors.BadModel):
        await cluster.__aenter__()
    with pytest.raises(errors.LlamboError, match="is not open"):
        await cluster.status()


async def test_an_answer_that_is_left_early_frees_its_slot(tiny_model: Path) -> None:
    async with llambo.Cluster(model=str(tiny_model), node_type="tiny", slots=1) as cluster:
        async with aclosing(cluster.stream("hello", max_tokens=400)) as tokens:
            await anext(tokens)
        assert await cluster.infer("hello", max_tokens=2, timeout_s=30)
        task = asyncio.create_task(cluster.infer("hello", max_tokens=400))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await cluster.infer("hello", max_tokens=2, timeout_s=30)


async def test_without_a_running_cluster_connect_says_how_to_start_one() -> None:
    with pytest.raises(errors.Unreachable, match="start one with: llamboctl init"):
        await llambo.connect().__aenter__()


def test_a_running_cluster_answers_and_obeys_and_stays() -> None:
    async def use(socket: str) -> None:
        async with llambo.connect() as cluster:
            await check_answers(cluster)
            await check_fusion(cluster)
            await check_nodes(cluster)
            await check_refusals(cluster)
            with pytest.raises(errors.LlamboError, match="the cluster is open already"):
                await cluster.__aenter__()
        with pytest.raises(errors.LlamboError, match="the cluster is not open"):
            await cluster.infer("hello")
        async with llambo.connect(socket) as cluster:
            assert await cluster.infer("hello", max_tokens=2)
            with pytest.raises(errors.BadRequest, match=r"connect\(address, styx=ADDRESS\) says where"):
                await cluster.status()

    with daemons.cluster() as facts:
        found = running.find(running.DAEMON)
        assert found is not None
        asyncio.run(use(found.socket))
        assert daemons.runs(facts["pid"])


def test_the_example_of_the_usage_page_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", USAGE, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("NodeCounts(total=3, ready=3")
