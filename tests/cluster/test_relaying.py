"""Requests in the node's own HTTP, through a cluster with real nodes: equal to what a node says, whatever dies."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llambo.cluster.api import Cluster
from llambo.cluster.transcript import Transcript, parsed
from llambo.core.errors import BadRequest, Diverged, NodeLost, NotFound, Overloaded
from tests.cluster.clusters import quick, until
from tests.cluster.llama_server import BUILT_IN, llama_server
from tests.cluster.relay_world import (
    DIALECTS,
    ENDLESS,
    FORMAT,
    GREEDY,
    LIMITS,
    MESSAGES,
    OPTIONS,
    ask,
    dialect,
    essence,
    killed_in_the_middle,
    pid_of,
    pieces,
    relay,
    second,
    straight,
)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster(quick()) as cluster:
        await cluster.load(str(BUILT_IN), name="built-in", options=OPTIONS)
        yield cluster


# --- what a node says -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_relayed_stream_is_what_the_node_gives_itself(cluster: Cluster, name: str) -> None:
    request = dialect(name, **GREEDY, seed=1)
    seen = await relay(cluster, request)
    async with straight(cluster) as post:
        status, body = await post(request)
    assert seen.status == status == 200
    own = [essence(parsed(event + b"\n\n")) for event in body.split(b"\n\n")[:-1]]
    assert seen.events == own
    assert seen.transcript.count == len(own) > 20
    assert seen.body == b"".join(seen.transcript.events())
    assert all(piece.endswith(b"\n\n") for piece in seen.pieces)


@pytest.mark.parametrize("name", ["chat", "completions", "completion", "responses", "messages"])
async def test_a_whole_reply_is_what_the_node_gives_itself(cluster: Cluster, name: str) -> None:
    request = dialect(name, streams=False, **GREEDY, seed=1)
    seen = await relay(cluster, request)
    async with straight(cluster) as post:
        _, body = await post(request)
    assert essence(json.loads(seen.body)) == essence(json.loads(body))
    assert len(seen.pieces) == 1


async def test_reports_of_the_prefill_come_where_they_were_asked_for(cluster: Cluster) -> None:
    seen = await relay(cluster, dialect("chat", return_progress=True))
    assert b'"prompt_progress"' in seen.body
    assert b'"prompt_progress"' not in (await relay(cluster, dialect("chat"))).body


async def test_a_refusal_of_the_request_is_the_nodes_own(cluster: Cluster) -> None:
    for request in (ask("/v1/chat/completions", {"messages": 3}), dialect("chat", grammar="root ::= (")):
        seen = await relay(cluster, request)
        assert seen.status == 400
        assert json.loads(seen.body)["error"]["type"] == "invalid_request_error"
    assert cluster.status().counters.errors == 2


async def test_a_prompt_that_no_node_holds_is_refused_in_the_nodes_words(cluster: Cluster) -> None:
    seen = await relay(cluster, ask("/v1/completions", {"prompt": "word " * 3000}))
    assert seen.status == 400
    assert json.loads(seen.body)["error"]["type"] == "exceed_context_size_error"


async def test_a_path_that_no_node_has_is_a_bad_request(cluster: Cluster) -> None:
    for kind in ("generate", "look"):
        with pytest.raises(BadRequest, match="no node of model built-in takes /v1/nothing"):
            await relay(cluster, ask("/v1/nothing", {}, kind=kind))


async def test_what_the_model_cannot_do_is_the_requests_fault_and_no_nodes(cluster: Cluster) -> None:
    with pytest.raises(BadRequest, match="nfill"):
        await relay(cluster, ask("/infill", {"input_prefix": "a", "input_suffix": "b"}))
    first, *_ = await cluster.nodes()
    assert first.errors == 0
    with pytest.raises(NotFound, match="built-in"):
        await relay(cluster, replace(dialect("chat"), model="other"))


async def test_embeddings_come_from_a_node_for_them(cluster: Cluster) -> None:
    request = ask("/v1/embeddings", {"input": ["a node", "a slot"]}, streams=False, kind="embed")
    seen = await relay(cluster, request)
    vectors = [item["embedding"] for item in json.loads(seen.body)["data"]]
    assert len(vectors) == 2
    assert len(vectors[0]) == len(vectors[1]) > 0
    assert seen.nodes != ["n1"]


# --- looking ----------------------------------------------------------------------------------------------------------


async def test_looking_takes_no_slot_and_waits_for_none(cluster: Cluster) -> None:
    async with cluster.relay(ENDLESS) as one, cluster.relay(ENDLESS) as two:
        await anext(pieces(one))
        await anext(pieces(two))
        assert [info.busy for info in await cluster.nodes()] == [2]
        seen = await relay(cluster, ask("/props", None, streams=False, kind="look"))
        assert "default_generation_settings" in json.loads(seen.body)
        counted = ask("/v1/messages/count_tokens", {"messages": MESSAGES}, streams=False, kind="look")
        assert json.loads((await relay(cluster, counted)).body)["input_tokens"] > 3
        assert [info.busy for info in await cluster.nodes()] == [2]


# --- deaths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DIALECTS)
async def test_a_stream_whose_node_is_killed_is_that_of_an_undisturbed_run(name: str, walk_model: Path) -> None:
    long: dict[str, Any] = {LIMITS.get(name, "max_tokens"): 300}
    request = dialect(name, **GREEDY, seed=1, **long)
    async with Cluster(quick()) as cluster:
        await cluster.load(str(walk_model), name="walk", options=OPTIONS)
        await second(cluster)
        whole = await relay(cluster, request)
        for death in (1, 9, whole.transcript.count - 3):
            if death > 9:  # the last events may have been on their way already
                seen = await relay(cluster, request, death)
                await until(lambda: all(node.state.value == "ready" for node in cluster._world.nodes.values()))
            else:
                seen = await killed_in_the_middle(cluster, request, death)
            assert seen.events == whole.events
            assert seen.body == b"".join(seen.transcript.events())
            assert seen.transcript.is_whole
            assert len(seen.ids) == len(whole.ids)


LONG: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True}
KINDS: dict[str, dict[str, Any]] = {
    "seeded": {"temperature": 1.5, "seed": 7, **LONG},
    "no seed": {"temperature": 1.5, **LONG},
    "a seed of -1": {"temperature": 1.5, "seed": -1, **LONG},
    "JSON schema": {"response_format": FORMAT, "temperature": 1.0, "max_tokens": 60},
    "log-probabilities": {"logprobs": True, "top_logprobs": 2, **GREEDY, **LONG},
}


@pytest.mark.parametrize("kind", KINDS)
async def test_sampling_grammars_and_log_probabilities_survive_two_deaths(cluster: Cluster, kind: str) -> None:
    await cluster.scale(3)
    request = dialect("chat", **KINDS[kind])
    is_long = kind != "JSON schema"  # which is over soon
    seen = await (killed_in_the_middle if is_long else relay)(cluster, request, 3, 12)
    seed = KINDS[kind].get("seed", -1)
    whole = await relay(cluster, dialect("chat", **{**KINDS[kind], "seed": seen.transcript.seed if seed < 0 else seed}))
    assert [essence_of_text(event) for event in seen.events] == [essence_of_text(event) for event in whole.events]
    assert len(seen.ids) == 1


def essence_of_text(event: Any) -> Any:
    if not isinstance(event, dict):
        return event
    return [
        (
            choice["delta"],
            choice["finish_reason"],
            [t["token"] for t in (choice.get("logprobs") or {}).get("content", [])],
        )
        for choice in event["choices"]
    ]


async def test_a_death_before_the_headers_is_not_noticed(cluster: Cluster) -> None:
    await second(cluster)
    whole = await relay(cluster, dialect("chat", **GREEDY))
    for info in await cluster.nodes():  # whichever gets it will not answer
        os.kill(info.pid, signal.SIGSTOP)
    task = asyncio.create_task(relay(cluster, dialect("chat", **GREEDY)))
    await until(lambda: any(node.busy for node in cluster._world.nodes.values()))
    chosen = next(node.id for node in cluster._world.nodes.values() if node.busy)
    pids = {info.id: info.pid for info in await cluster.nodes()}
    os.kill(pids.pop(chosen), signal.SIGKILL)
    os.kill(pids.popitem()[1], signal.SIGCONT)
    seen = await task
    assert seen.events == whole.events
    assert seen.nodes != [chosen]


@pytest.mark.parametrize("streams", [True, False])
async def test_a_death_between_headers_and_the_first_token_is_not_noticed(cluster: Cluster, streams: bool) -> None:
    await second(cluster)
    body = {"prompt": "word " * 900, "n_predict": 100, **GREEDY}
    whole = await relay(cluster, ask("/completion", body, streams=streams))
    task = asyncio.create_task(relay(cluster, ask("/completion", {**body, "cache_prompt": False}, streams=streams)))
    await until(lambda: any(node.busy for node in cluster._world.nodes.values()))
    chosen = next(node.id for node in cluster._world.nodes.values() if node.busy)
    place = cluster._runtime.place_of(chosen)
    assert place is not None
    async with asyncio.timeout(5):
        while not any(slot.is_busy for slot in await place.upstream.slots()):
            pass
    os.kill(place.handle.pid, signal.SIGKILL)
    seen = await task
    assert seen.nodes != [chosen]
    if streams:
        assert [event["content"] for event in seen.events] == [event["content"] for event in whole.events]
    else:
        assert json.loads(seen.body)["content"] == json.loads(whole.body)["content"]


async def test_a_death_on_the_last_event_is_no_death(cluster: Cluster) -> None:
    request = dialect("chat", **GREEDY)
    whole = await relay(cluster, request)
    seen = await relay(cluster, request, whole.transcript.count)
    assert seen.events == whole.events
    assert cluster.status().counters.errors == 0


async def test_when_no_node_is_left_the_reader_is_told(cluster: Cluster) -> None:
    given: list[bytes] = []
    with pytest.raises(NodeLost):
        async with cluster.relay(ENDLESS) as reply:
            async for piece in pieces(reply):
                given.append(piece)
                if len(given) == 3:
                    await cluster.kill("n1")
    assert given
    assert 'llambo_requests_total{interface="http",outcome="error"} 1.0' in cluster.metrics()


async def test_a_second_run_that_is_another_answer_ends_with_an_error(cluster: Cluster) -> None:
    transcript = Transcript()
    for event in (b'data: {"content":"What nobody says"}\n\n',):
        transcript.take(event)
    given: list[bytes] = []
    with pytest.raises(Diverged, match="after 0 of the 1 events"):
        async with cluster.relay(replace(dialect("completion", **GREEDY), resume=transcript)) as reply:
            given += [piece async for piece in pieces(reply)]
    assert given == []


# --- hanging up, going on ---------------------------------------------------------------------------------------------


async def test_who_hangs_up_frees_the_slot_at_once(cluster: Cluster) -> None:
    place = cluster._runtime.place_of("n1")
    assert place is not None
    freed_after = []
    for _ in range(3):
        async with cluster.relay(ENDLESS) as reply:
            await anext(pieces(reply))
            assert any(slot.is_busy for slot in await place.upstream.slots())
        left = time.monotonic()
        async with asyncio.timeout(10):
            while any(slot.is_busy for slot in await place.upstream.slots()):
                pass
        freed_after.append(time.monotonic() - left)
        assert [info.busy for info in await cluster.nodes()] == [0]
    assert min(freed_after) < 0.2  # the best counts: a busy machine may add to one
    assert 'outcome="cancelled"} 3.0' in cluster.metrics()


async def test_a_reader_that_stands_still_makes_the_node_wait_and_loses_nothing(cluster: Cluster) -> None:
    body = {"prompt": "Llambo is", "n_predict": 600, "ignore_eos": True, "n_probs": 10, **GREEDY}
    async with cluster.relay(ask("/completion", body)) as reply:
        stream = pieces(reply)
        first = await anext(stream)
        place = cluster._runtime.place_of("n1")
        assert place is not None
        async with asyncio.timeout(20):
            while any(slot.is_busy for slot in await place.upstream.slots()):
                await asyncio.sleep(0.02)
        rest = [piece async for piece in stream]
    events = [parsed(event + b"\n\n") for event in (first + b"".join(rest)).split(b"\n\n")[:-1]]
    assert events[-1]["tokens_predicted"] == 600
    assert sum(len(event["tokens"]) for event in events) == 600


@pytest.mark.parametrize("kind", ["greedy", "no seed"])
async def test_a_stream_goes_on_after_a_lost_client_where_it_was(cluster: Cluster, kind: str) -> None:
    request = dialect("chat", **(GREEDY if kind == "greedy" else KINDS[kind]))
    async with cluster.relay(request) as reply:
        async for _ in pieces(reply):
            if reply.transcript.count >= 6:
                break
    transcript = reply.transcript
    held = transcript.events()
    seen = await relay(cluster, replace(request, resume=transcript))
    assert transcript.events()[: len(held)] == held
    assert seen.body == b"".join(transcript.events(len(held)))
    assert transcript.is_whole
    assert len(set(re.findall(rb'"id":"chatcmpl-\w+"', b"".join(transcript.events())))) == 1
    again = await relay(cluster, replace(request, resume=transcript))
    assert again.body == b""


# --- limits and counts ------------------------------------------------------------------------------------------------


async def test_a_full_queue_refuses() -> None:
    async with Cluster(quick(orchestrator={"queue_limit": 1})) as cluster:
        await cluster.load(str(BUILT_IN), name="built-in", options=replace(OPTIONS, slots=1))
        async with cluster.relay(ENDLESS):
            waiting = asyncio.create_task(relay(cluster, dialect("chat")))
            await until(lambda: len(cluster._world.models["built-in"].queue))
            with pytest.raises(Overloaded):
                await relay(cluster, dialect("chat"))
        assert (await waiting).status == 200


async def test_a_node_that_stands_still_counts_as_lost_after_the_time_limit() -> None:
    settings = quick(load_balancer={"timeout": "500ms", "health_check_interval": "60s"})
    async with Cluster(settings) as cluster:
        await cluster.load(str(BUILT_IN), name="built-in", options=OPTIONS)
        await second(cluster)
        whole = await relay(cluster, dialect("chat", **GREEDY))
        async with cluster.relay(dialect("chat", **GREEDY)) as reply:
            await anext(pieces(reply))
            pid = pid_of(cluster, reply.node)
            os.kill(pid, signal.SIGSTOP)
            async with asyncio.timeout(10):
                async for _ in pieces(reply):
                    pass
            os.kill(pid, signal.SIGCONT)
        assert [essence(parsed(event)) for event in reply.transcript.events()] == whole.events


async def test_counts_are_the_nodes_own_and_every_request_shows_once(cluster: Cluster) -> None:
    for name in ("chat", "completions", "completion", "responses", "messages"):
        for streams in (True, False):
            await relay(cluster, dialect(name, streams=streams, **GREEDY))
    await relay(cluster, ask("/props", None, streams=False, kind="look"))
    assert cluster.status().counters.tokens == 300
    metrics = cluster.metrics()
    assert 'llambo_requests_total{interface="http",outcome="done"} 10.0' in metrics
    figures = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
    assert figures['llambo_tokens_total{kind="generated"}'] == "300.0"
    assert figures["llambo_time_to_first_token_seconds_count"] == "5.0"
    assert cluster._world.totals.prompt_tokens > 30


async def test_a_conversation_goes_to_the_node_that_knows_it(cluster: Cluster) -> None:
    await second(cluster)
    text = "A long beginning that several requests share. " * 20
    nodes = set()
    for number in range(4):
        body = {"messages": [{"role": "user", "content": f"{text} {number}"}], "max_tokens": 2}
        nodes |= set((await relay(cluster, ask("/v1/chat/completions", body, text=text))).nodes)
    assert len(nodes) == 1
    assert cluster._world.totals.cached_tokens > 100


# --- nodes of others --------------------------------------------------------------------------------------------------


async def test_attached_servers_take_relayed_requests() -> None:
    async with llama_server(BUILT_IN, ctx=512) as server, Cluster(quick()) as cluster:
        await cluster.attach(server.url)
        for name in DIALECTS:
            assert (await relay(cluster, dialect(name, **GREEDY))).transcript.is_whole


async def test_the_name_of_a_model_is_the_clusters_and_no_path() -> None:
    async with Cluster(quick()) as cluster:
        await cluster.load(str(BUILT_IN), name="mine", options=OPTIONS)
        for name in ("chat", "responses", "messages", "completion"):
            body = (await relay(cluster, dialect(name))).body
            assert set(re.findall(rb'"model":("[^"]*")', body)) == {b'"mine"'}


async def test_who_gives_up_while_waiting_for_headers_leaves_nothing(cluster: Cluster) -> None:
    pid = pid_of(cluster, "n1")
    os.kill(pid, signal.SIGSTOP)
    task = asyncio.create_task(relay(cluster, dialect("chat")))
    await until(lambda: any(node.busy for node in cluster._world.nodes.values()))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [node.busy for node in cluster._world.nodes.values()] == [0]
    os.kill(pid, signal.SIGCONT)
    assert 'outcome="cancelled"} 1.0' in cluster.metrics()


async def test_closing_the_cluster_ends_what_is_relayed() -> None:
    async with Cluster(quick()) as cluster:
        await cluster.load(str(BUILT_IN), name="built-in", options=OPTIONS)
        async with cluster.relay(ENDLESS) as reply:
            await anext(pieces(reply))
            await cluster.close()
            with pytest.raises(NodeLost):
                async for _ in pieces(reply):
                    pass
