"""Nodes on an operator's word: started, scaled, drained, killed, pinned, evicted, attached. Real nodes throughout."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from llambo.cluster.api import Cluster
from llambo.cluster.control import ClusterEvent, NodeInfo
from llambo.core.errors import BadRequest, LlamboError, NameInUse, NodeLost, NoMemory, NoModel, NotFound, TimedOut
from llambo.core.types import Done, Event, GenerateRequest, LoadOptions, Message, Sampling, TokenEvent
from tests.cluster.clusters import quick, until
from tests.cluster.llama_server import llama_server

SMALL = LoadOptions(ctx=512, slots=2, threads=1)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(quick()) as cluster:
        yield cluster


def ask(prompt: str, tokens: int = 8, *, model: str = "", node_type: str = "", session: str = "") -> GenerateRequest:
    messages = (Message("user", prompt),)
    sampling = Sampling(max_tokens=tokens, temperature=0)
    return GenerateRequest(messages=messages, model=model, sampling=sampling, node_type=node_type, session=session)


async def collect(cluster: Cluster, request: GenerateRequest) -> tuple[str, Done]:
    events: list[Event] = [event async for event in cluster.generate(request)]
    done = events[-1]
    assert isinstance(done, Done)
    return "".join(event.text for event in events if isinstance(event, TokenEvent)), done


def children() -> int:
    return len(psutil.Process().children(recursive=True))


async def test_spawn_starts_so_many_nodes_of_a_type_and_tells_its_progress(cluster: Cluster) -> None:
    told: list[tuple[int, int]] = []
    nodes = await cluster.spawn(3, node_type="tiny", progress=lambda done, total: told.append((done, total)))
    assert [(node.id, node.type, node.state, node.slots, node.ctx) for node in nodes] == [
        (f"n{number}", "tiny", "ready", 1, 512) for number in (1, 2, 3)
    ]
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len({node.pid for node in nodes}) == 3
    text, done = await collect(cluster, ask("What is a node?", node_type="tiny"))
    assert text
    assert done.model == "built-in"
    status = cluster.cluster_status()
    assert (status.state, status.nodes.total, status.nodes.ready, status.slots.total) == ("ready", 3, 3, 3)


@pytest.mark.parametrize(
    ("count", "node_type", "model", "kind", "words"),
    [
        (0, "tiny", "", BadRequest, "at least 1, not 0"),
        (-1, "tiny", "", BadRequest, "at least 1, not -1"),
        (10**9, "tiny", "", NoMemory, r"1,000,000,000 nodes for built-in do not fit .*; [\d,]+ would"),
        (1, "huge", "", BadRequest, "no node type is called 'huge'; there are tiny, medium, large"),
        (1, "tiny", "/nowhere/at/all.gguf", LlamboError, "no such file"),
    ],
)
async def test_what_cannot_be_spawned_is_refused_with_the_reason(
    cluster: Cluster, count: int, node_type: str, model: str, kind: type[LlamboError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        await cluster.spawn(count, node_type=node_type, model=model)
    assert children() == 0
    assert cluster.cluster_status().nodes.total == 0


async def test_a_batch_of_which_one_cannot_start_leaves_none(
    cluster: Cluster, tmp_path: Path, walk_model: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    content = bytearray(walk_model.read_bytes())
    at = content.index(b"llama.block_count") + len(b"llama.block_count") + 4
    content[at : at + 4] = (200).to_bytes(4, "little")  # more layers than there are tensors for
    damaged.write_bytes(content)
    with pytest.raises(LlamboError, match=r"damaged\.gguf"):
        await cluster.spawn(3, node_type="tiny", model=str(damaged))
    await until(lambda: children() <= 1)  # the zygote may stay
    assert cluster.status().models == (), "it would be the default model"
    assert cluster.cluster_status().nodes.total == 0


async def test_scale_goes_up_and_down_and_not_below_the_minimum(cluster: Cluster) -> None:
    await cluster.spawn(1, node_type="tiny")
    assert len(await cluster.scale(3)) == 3
    assert len(await cluster.scale(1)) == 1
    await until(lambda: children() == 2)
    with pytest.raises(BadRequest, match=r"at least 1 nodes \(orchestrator.min_nodes\), so 0 are too few"):
        await cluster.scale(0)
    with pytest.raises(LlamboError):
        await cluster.scale(10**9)
    assert cluster.cluster_status().nodes.total == 1


async def test_scale_above_the_maximum_is_refused() -> None:
    async with Cluster(quick(orchestrator={"max_nodes": 2})) as cluster:
        await cluster.spawn(1, node_type="tiny")
        with pytest.raises(BadRequest, match="at most 2 nodes"):
            await cluster.scale(3)


async def test_scaling_down_lets_answers_finish(cluster: Cluster, walk_model: Path) -> None:
    await cluster.spawn(2, node_type="tiny", model=str(walk_model))
    pids = [node.pid for node in await cluster.nodes()]
    for pid in pids:  # or the first answer might be over before the second begins
        os.kill(pid, signal.SIGSTOP)
    answers = [asyncio.create_task(collect(cluster, ask("hello", 300))) for _ in range(2)]
    await until(lambda: cluster.cluster_status().slots.busy == 2)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    await cluster.scale(1)
    for _, done in await asyncio.gather(*answers):
        assert (done.tokens, done.failovers) == (300, 0)
    assert cluster.cluster_status().nodes.total == 1


async def interrupted(cluster: Cluster, interrupt: Callable[[NodeInfo], Awaitable[None]]) -> tuple[NodeInfo, str, int]:
    """The node whose answer was interrupted after its first token, the text and the failovers.

    Where the reader came late there are none: the answer was whole in the pipe.
    """
    async with aclosing(cluster.generate(ask("hello", 400))) as events:
        first = await anext(events)
        nodes = await cluster.nodes()
        busy = next((node for node in nodes if node.busy), nodes[0])
        await interrupt(busy)
        *rest, done = [event async for event in events]
    assert isinstance(done, Done)
    return busy, "".join(event.text for event in (first, *rest)), done.failovers


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


async def test_a_killed_node_is_gone_for_good_and_its_answer_goes_on_elsewhere(
    cluster: Cluster, walk_model: Path
) -> None:
    await cluster.spawn(2, node_type="tiny", model=str(walk_model))
    whole, _ = await collect(cluster, ask("hello", 400))

    async def kill(node: NodeInfo) -> None:
        await cluster.kill(node.id)

    failovers = 0
    while not failovers:
        await cluster.scale(2)
        killed, text, failovers = await interrupted(cluster, kill)
        assert text == whole
    assert failovers == 1
    assert [node.id for node in await cluster.nodes()] != [killed.id]
    assert cluster.cluster_status().nodes.total == 1
    with pytest.raises(NotFound, match=f"no node is called '{killed.id}'; there are n"):
        await cluster.kill(killed.id)


async def test_restart_gives_a_node_a_new_process_and_the_next_epoch(cluster: Cluster) -> None:
    (before,) = await cluster.spawn(1, node_type="tiny")
    after = await cluster.restart(before.id)
    assert (after.id, after.epoch, after.state) == (before.id, 2, "ready")
    assert after.pid != before.pid
    assert not psutil.pid_exists(before.pid)


async def test_a_node_that_hangs_is_found_and_replaced_and_its_answer_goes_on(
    cluster: Cluster, walk_model: Path
) -> None:
    await cluster.spawn(2, node_type="tiny", model=str(walk_model))
    whole, _ = await collect(cluster, ask("hello", 400))

    async def stop(node: NodeInfo) -> None:
        os.kill(node.pid, signal.SIGSTOP)

    failovers = 0
    while not failovers:
        stopped, text, failovers = await interrupted(cluster, stop)
        assert text == whole
        await until(partial(is_gone, stopped.pid))
        await until(lambda: cluster.cluster_status().nodes.ready == 2)
    assert failovers == 1


async def test_a_node_that_is_terminated_comes_back(cluster: Cluster) -> None:
    (node,) = await cluster.spawn(1, node_type="tiny")
    os.kill(node.pid, signal.SIGTERM)
    await until(lambda: cluster.cluster_status().nodes.ready == 0)
    await until(lambda: cluster.cluster_status().nodes.ready == 1)
    assert (await cluster.nodes())[0].epoch == 2


async def test_the_events_tell_what_happens_to_nodes(cluster: Cluster) -> None:
    kinds: list[str] = []

    async def listen() -> None:
        async with aclosing(cluster.events()) as events:
            async for event in events:
                assert isinstance(event, ClusterEvent)
                kinds.append(event.kind)

    listening = asyncio.create_task(listen())
    await asyncio.sleep(0)
    (node,) = await cluster.spawn(1, node_type="tiny")
    os.kill(node.pid, signal.SIGKILL)
    await until(lambda: kinds.count("node_ready") == 2)
    await cluster.drain(node.id)
    await until(lambda: "node_gone" in kinds)
    listening.cancel()
    happened = [kind for kind in kinds if kind.startswith("node_")]
    assert happened == [
        *("node_starting", "node_ready"),
        *("node_dead", "node_starting", "node_ready"),
        *("node_draining", "node_gone"),
    ]


async def test_a_drained_node_hands_its_conversations_on(cluster: Cluster) -> None:
    await cluster.spawn(2, node_type="medium")
    question = "What is a node? " * 40
    first = GenerateRequest.from_prompt(question, sampling=Sampling(max_tokens=8, temperature=0))
    text, done = await collect(cluster, first)
    turns = (Message("user", question), Message("assistant", text), Message("user", "And what is a slot?"))
    await cluster.drain(done.node)
    _, next_done = await collect(
        cluster, GenerateRequest(messages=turns, sampling=Sampling(max_tokens=8, temperature=0))
    )
    assert next_done.node != done.node
    assert next_done.cached_tokens >= 0.8 * done.prompt_tokens, "the target had to prefill what it was handed"


async def test_who_waits_too_long_is_told_for_what(walk_model: Path) -> None:
    settings = quick(orchestrator={"queue_timeout": "300ms"}, load_balancer={"health_check_interval": "1h"})
    async with Cluster(settings) as cluster:
        (node,) = await cluster.spawn(1, node_type="tiny", model=str(walk_model))
        os.kill(node.pid, signal.SIGSTOP)
        stuck = asyncio.create_task(collect(cluster, ask("hello")))
        await until(lambda: cluster.cluster_status().slots.busy == 1)
        with pytest.raises(TimedOut, match=r"no slot came free within 0\.3 s; all 1 are busy"):
            await collect(cluster, ask("hello"))
        stuck.cancel()


async def test_a_strategy_is_chosen_by_name(cluster: Cluster) -> None:
    await cluster.spawn(2, node_type="tiny")
    cluster.set_strategy("round-robin")
    nodes = [(await collect(cluster, ask("hello")))[1].node for _ in range(4)]
    assert nodes[:2] == nodes[2:]
    assert len(set(nodes)) == 2
    with pytest.raises(BadRequest, match="no strategy is called 'best'; there are round-robin, least-loaded"):
        cluster.set_strategy("best")
    stats = cluster.balancer_stats()
    assert (stats.strategy, stats.placed, sum(stats.by_node.values())) == ("round-robin", 4, 4)


async def test_a_type_that_no_node_has_is_named(cluster: Cluster) -> None:
    await cluster.spawn(1, node_type="tiny")
    with pytest.raises(BadRequest, match="no 'large' node has built-in; there are tiny"):
        await collect(cluster, ask("hello", node_type="large"))


async def test_a_prompt_too_long_for_one_type_goes_to_a_larger_one(cluster: Cluster, walk_model: Path) -> None:
    await cluster.spawn(2, node_type="tiny", model=str(walk_model))
    await cluster.spawn(1, node_type="medium", model="walk")
    for _ in range(3):
        _, done = await collect(cluster, ask("hello " * 250))
        assert done.node == "n3"


async def test_nodes_know_their_memory_and_their_sandbox(cluster: Cluster) -> None:
    await cluster.spawn(1, node_type="tiny")
    (node,) = await cluster.nodes()
    assert 0 < node.uss_bytes < node.rss_bytes
    assert "no-new-privs" in node.sandbox
    assert Path(node.socket).is_socket()
    assert node.machine == os.uname().nodename


# --- models on demand ----------------------------------------------------------------------------------------------


@pytest.fixture
async def lazy(request: pytest.FixtureRequest) -> AsyncIterator[Cluster]:
    async with Cluster(quick(models={"max_loaded": 2}), on_demand=True) as cluster:
        yield cluster


async def test_a_request_loads_the_model_it_names(lazy: Cluster, walk_model: Path) -> None:
    _, done = await collect(lazy, ask("hello", model=str(walk_model)))
    assert done.model == "walk"
    _, again = await collect(lazy, ask("hello", model="walk"))
    assert again.node == done.node
    _, default = await collect(lazy, ask("hello", model="built-in"))
    assert default.model == "built-in"
    with pytest.raises(NotFound, match="no model is called 'nonsense'; there are walk, built-in, and here is none"):
        await collect(lazy, ask("hello", model="nonsense"))


async def test_the_least_recently_used_model_makes_room_and_comes_back(
    lazy: Cluster, walk_model: Path, tiny_model: Path
) -> None:
    await collect(lazy, ask("hello", model=str(walk_model)))
    await collect(lazy, ask("hello", model="built-in"))
    await collect(lazy, ask("hello", model=str(tiny_model)))
    states = {model.name: model.state for model in lazy.status().models}
    assert states == {"walk": "unloaded", "built-in": "ready", "tiny": "ready"}
    await collect(lazy, ask("hello", model="walk"))
    states = {model.name: model.state for model in lazy.status().models}
    assert states == {"walk": "ready", "built-in": "unloaded", "tiny": "ready"}


async def test_a_pinned_or_busy_model_is_never_evicted(lazy: Cluster, walk_model: Path, tiny_model: Path) -> None:
    await collect(lazy, ask("hello", model="built-in"))
    await lazy.pin("built-in", pinned=True)
    long = asyncio.create_task(collect(lazy, ask("hello", 2000, model=str(walk_model))))
    await until(lambda: lazy.cluster_status().slots.busy == 1)
    waiting = asyncio.create_task(collect(lazy, ask("hello", model=str(tiny_model))))
    assert (await long)[1].failovers == 0
    await waiting
    states = {model.name: model.state for model in lazy.status().models}
    assert states == {"built-in": "ready", "walk": "unloaded", "tiny": "ready"}


async def test_where_nothing_may_go_a_request_is_told_so_at_once(
    lazy: Cluster, walk_model: Path, tiny_model: Path
) -> None:
    for model in ("built-in", str(walk_model)):
        _, done = await collect(lazy, ask("hello", model=model))
        await lazy.pin(done.model, pinned=True)
    with pytest.raises(NoMemory, match="no room for model tiny, and nothing that is loaded may be unloaded"):
        await collect(lazy, ask("hello", model=str(tiny_model)))


async def test_an_order_never_ends_what_runs(lazy: Cluster, walk_model: Path, tiny_model: Path) -> None:
    await collect(lazy, ask("hello", model="built-in"))
    await collect(lazy, ask("hello", model=str(walk_model)))
    with pytest.raises(NoMemory, match=r"2 models are loaded, and models\.max_loaded allows 2"):
        await lazy.spawn(1, model=str(tiny_model))
    with pytest.raises(NoMemory, match="max_loaded"):
        await lazy.load(str(tiny_model))
    assert {model.name: model.state for model in lazy.status().models if model.state == "ready"} == {
        "built-in": "ready",
        "walk": "ready",
    }


async def test_several_models_asked_for_at_once_take_turns(lazy: Cluster, walk_model: Path, tiny_model: Path) -> None:
    models = ["built-in", str(walk_model), str(tiny_model)]
    answers = await asyncio.gather(*(collect(lazy, ask("hello", model=model)) for model in models * 2))
    assert [done.model for _, done in answers] == ["built-in", "walk", "tiny"] * 2


# --- calls that must not hang --------------------------------------------------------------------------------------


async def test_scale_does_not_wait_for_what_is_ready_already(cluster: Cluster, walk_model: Path) -> None:
    await cluster.spawn(2, node_type="medium", model=str(walk_model))
    cluster.set_strategy("round-robin")
    answers = [asyncio.create_task(collect(cluster, ask("hello", 1500))) for _ in range(2)]
    await until(lambda: cluster.cluster_status().slots.busy == 2)
    draining = asyncio.create_task(cluster.drain("n1"))
    await asyncio.sleep(0)
    async with asyncio.timeout(20):
        assert len(await cluster.scale(2)) >= 2
        await asyncio.gather(draining, *answers)


async def test_a_load_returns_when_its_suspect_node_recovers(walk_model: Path) -> None:
    async with Cluster(quick(load_balancer={"health_check_failures": 100})) as cluster:
        info = await cluster.load(str(walk_model), options=SMALL)
        os.kill(info.pid, signal.SIGSTOP)
        await until(lambda: cluster.cluster_status().nodes.ready == 0)
        loading = asyncio.create_task(cluster.load(str(walk_model), options=SMALL))
        await asyncio.sleep(0)
        os.kill(info.pid, signal.SIGCONT)
        async with asyncio.timeout(20):
            assert (await loading).pid == info.pid


async def test_a_closed_cluster_refuses_and_ends_what_waits(walk_model: Path) -> None:
    cluster = Cluster(quick())
    (node,) = await cluster.spawn(1, node_type="tiny", model=str(walk_model))
    heard: list[str] = []

    async def listen() -> None:
        async with aclosing(cluster.events()) as events:
            async for event in events:
                heard.append(event.kind)

    listening = asyncio.create_task(listen())
    spawning = asyncio.create_task(cluster.spawn(20, node_type="tiny"))
    os.kill(node.pid, signal.SIGSTOP)
    stuck = asyncio.create_task(collect(cluster, ask("hello")))
    draining = asyncio.create_task(cluster.drain(node.id))
    await until(lambda: "node_starting" in heard)
    async with asyncio.timeout(30):
        await cluster.close()
        await listening
        results = await asyncio.gather(spawning, stuck, draining, return_exceptions=True)
    assert all(isinstance(result, LlamboError) or result is None for result in results), results
    for call in (
        cluster.spawn(2),
        cluster.scale(2),
        cluster.kill(node.id),
        cluster.restart(node.id),
        cluster.attach("http://127.0.0.1:9"),
        cluster.load("built-in"),
        collect(cluster, ask("hello")),
    ):
        with pytest.raises(LlamboError):
            await call
    assert children() == 0


# --- attached servers ----------------------------------------------------------------------------------------------


async def test_an_attached_server_is_a_node_and_its_death_is_survived(cluster: Cluster, walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=512) as server:
        attached = await cluster.attach(server.url)
        assert (attached.launcher, attached.state, attached.model) == ("attach", "ready", "walk")
        whole, _ = await collect(cluster, ask("hello", 400))
        async with aclosing(cluster.generate(ask("hello", 400))) as events:
            text = ""
            async for event in events:
                if isinstance(event, Done):
                    # Without a failover the answer was whole in the pipe: the reader came late.
                    assert (event.node, event.failovers) in {("n2", 1), (attached.id, 0)}
                    break
                if not text:
                    os.kill(server.pid, signal.SIGKILL)
                    await cluster.spawn(1, node_type="tiny", model=str(walk_model))
                text += event.text
        assert text == whole
    await until(lambda: cluster.cluster_status().state == "degraded")
    await cluster.detach(attached.id)
    assert (cluster.cluster_status().state, cluster.cluster_status().nodes.total) == ("ready", 1)
    with pytest.raises(BadRequest, match="not attached but ours"):
        await cluster.detach("n2")


async def test_an_attached_server_that_comes_back_serves_again(cluster: Cluster, walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=512) as server:
        await cluster.attach(server.url)
        await collect(cluster, ask("hello"))
        os.kill(server.pid, signal.SIGSTOP)
        await until(lambda: cluster.cluster_status().nodes.dead == 1)
        os.kill(server.pid, signal.SIGCONT)
        await until(lambda: cluster.cluster_status().nodes.ready == 1)
        await collect(cluster, ask("hello"))


async def test_nothing_is_attached_where_nothing_listens(cluster: Cluster) -> None:
    with pytest.raises(LlamboError, match=r"127\.0\.0\.1:9"):
        await cluster.attach("http://127.0.0.1:9")
    assert cluster.cluster_status().nodes.total == 0


async def test_a_closed_cluster_says_so(walk_model: Path) -> None:
    async with Cluster(quick()) as cluster:
        await cluster.spawn(1, node_type="tiny", model=str(walk_model))
        events = cluster.generate(ask("hello", 4000))
        await anext(events)
    with pytest.raises(NodeLost):
        async for _ in events:
            pass
    assert children() == 0


async def test_a_server_is_attached_once_and_a_type_must_exist(cluster: Cluster, walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=512) as server:
        node = await cluster.attach(server.url)
        for again in (server.url, f"{server.url}/", f"{server.url}/v1"):
            with pytest.raises(NameInUse, match=f"attached already as {node.id}"):
                await cluster.attach(again)
        with pytest.raises(BadRequest, match="no node type is called 'nope'"):
            await cluster.attach("http://127.0.0.1:9", node_type="nope")


async def test_what_a_gone_server_leaves_behind_is_nothing(cluster: Cluster, walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=512) as server:
        node = await cluster.attach(server.url, api_key="secret")
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: cluster.cluster_status().nodes.dead == 1)
        async with asyncio.timeout(20):
            with pytest.raises(LlamboError):
                await cluster.restart(node.id)
        detaching = asyncio.create_task(cluster.detach(node.id))
        await asyncio.sleep(0)
        detaching.cancel()  # the one who asked goes away
    await until(lambda: cluster.status().models == ())
    assert cluster._operating.attached == {}
    with pytest.raises(NoModel):
        await collect(cluster, ask("hello"))
    await cluster.load(str(walk_model), options=SMALL)
    await collect(cluster, ask("hello"))


async def test_a_server_that_comes_back_with_another_model_does_not_serve_it_under_the_old_name(
    cluster: Cluster, walk_model: Path, tiny_model: Path
) -> None:
    async with llama_server(walk_model, ctx=512) as server:
        node = await cluster.attach(server.url)
        address = server.url
    await until(lambda: cluster.cluster_status().nodes.dead == 1)
    async with llama_server(tiny_model, ctx=512) as other:
        cluster._operating.attached[node.id] = replace(cluster._operating.attached[node.id], url=other.url)
        with pytest.raises(LlamboError, match="has the model tiny now, not walk"):
            await cluster.restart(node.id)
    assert address != other.url


async def test_an_attached_server_that_is_gone_is_replaced_by_a_node_of_ours_where_the_model_is_ours(
    cluster: Cluster, walk_model: Path
) -> None:
    await cluster.spawn(1, node_type="tiny", model=str(walk_model))
    async with llama_server(walk_model, ctx=512) as server:
        await cluster.attach(server.url)
    await until(lambda: cluster.cluster_status().nodes.dead == 1)
    await cluster.kill("n1")
    _, done = await collect(cluster, ask("hello"))
    assert done.node == "n3"
