"""The namespace over a real cluster: nodes that are processes, answers that a model gives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from llambo.cluster.api import Cluster
from llambo.core import paths
from llambo.core.errors import NoQuorum
from llambo.core.fusion_document import fusion_of
from llambo.core.types import Done, GenerateRequest, Message, Sampling
from llambo.namespace.server import Namespace
from llambo.ninep.client import AsyncClient
from llambo.ninep.server import FileServer

QUESTION = "What is distributed computing?"
GREEDY = "temperature 0\nmax_tokens 12\n"


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with Cluster(log_dir=tmp_path / "logs", state_path=tmp_path / "state.json", on_demand=True) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: Cluster, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    namespace = Namespace(cluster, cluster, cluster, home=paths.home(), request_stop=lambda: None)
    async with namespace, FileServer(namespace.attach) as server:
        address = await server.listen(f"unix!{tmp_path}/s")
        async with await AsyncClient.connect(address) as client:
            yield client


async def _ask(cluster: Cluster, *messages: Message) -> str:
    request = GenerateRequest(messages=messages, sampling=Sampling(max_tokens=12, temperature=0))
    return "".join([event.text async for event in cluster.generate(request) if not isinstance(event, Done)])


async def test_nodes_are_spawned_looked_at_and_ended_by_files(client: AsyncClient) -> None:
    async with client.open("events") as events, client.open("ctl", "rw") as ctl:
        await ctl.write("spawn 2 tiny")
        assert await ctl.read_all() == b"n1\nn2\n"
        assert b"node_ready" in await events.read()
        assert [entry.name for entry in await client.ls("nodes")] == ["n1", "n2"]
        status = dict(
            line.partition(" ")[::2] for line in (await client.read_file("nodes/n1/status")).decode().splitlines()
        )
        assert (status["state"], status["type"], status["model"]) == ("ready", "tiny", "built-in")
        assert int(status["rss_bytes"]) > int(status["uss_bytes"]) > 0
        async with client.open("nodes/n1/log") as log:
            assert await log.read(), "what the node said when it started"
        pid = int(status["pid"])
        await client.write_file("nodes/n1/ctl", "restart")
        assert not psutil.pid_exists(pid)
        assert b"epoch 2\n" in await client.read_file("nodes/n1/status")
        await client.remove("nodes/n2")
        await ctl.write("kill n1")
        assert await client.ls("nodes") == []
        document = json.loads(await client.read_file("status.json"))
        assert document["nodes"]["total"] == 0
        assert document["node_list"] == []


async def test_a_session_has_the_conversation_that_the_door_has(cluster: Cluster, client: AsyncClient) -> None:
    await cluster.spawn(1)
    first = await _ask(cluster, Message("user", QUESTION))
    second = await _ask(
        cluster, Message("user", QUESTION), Message("assistant", first), Message("user", "Say it again.")
    )
    async with client.open("clone", "rw") as ctl:
        path = f"sessions/{(await ctl.read()).decode().strip()}"
        await ctl.write(GREEDY)
        await client.write_file(f"{path}/prompt", f"{QUESTION}\n")
        async with client.open(f"{path}/stream") as stream:
            pieces = [piece async for piece in stream.follow()]
        assert b"".join(pieces).decode() == first
        await client.write_file(f"{path}/prompt", "Say it again.")
        await ctl.write("send")
        assert (await client.read_file(f"{path}/reply")).decode() == second
        status = dict(
            line.partition(" ")[::2] for line in (await client.read_file(f"{path}/status")).decode().splitlines()
        )
        assert (status["state"], status["node"], status["tokens"]) == ("done", "n1", "12")
        assert int(status["cached_tokens"]) > 0, "the conversation is still in the node's cache"


async def test_a_stream_that_is_closed_frees_its_slot(cluster: Cluster, client: AsyncClient, tiny_model: Path) -> None:
    await client.write_file("ctl", f"spawn 1 model={tiny_model}")
    async with client.open("data", "rw") as data:
        await data.write("go on for ever")
        assert await data.read()
        assert cluster.cluster_status().slots.busy == 1
    async with asyncio.timeout(20):
        while cluster.cluster_status().slots.busy:
            await asyncio.sleep(0.005)
    assert cluster.cluster_status().requests.cancelled == 1


async def test_a_model_is_loaded_and_unloaded_by_its_files(client: AsyncClient, walk_model: Path) -> None:
    await client.write_file("models/built-in/ctl", "load")
    assert b"state ready\n" in await client.read_file("models/built-in/status")
    await client.write_file("models/built-in/ctl", "unload")
    assert await client.ls("nodes") == []
    assert b"state stored\n" in await client.read_file("models/built-in/status")


async def test_a_checkpoint_is_saved_where_it_says(client: AsyncClient, tmp_path: Path) -> None:
    async with client.open("ctl", "rw") as ctl:
        await ctl.write(f"spawn 1 tiny\ncheckpoint '{tmp_path}/a copy.json'")
        assert (await ctl.read_all()).decode() == f"n1\n{tmp_path}/a copy.json\n"
    saved = json.loads((tmp_path / "a copy.json").read_text())
    assert saved | {"saved_at": 0} == json.loads(await client.read_file("checkpoint")) | {"saved_at": 0}


async def test_three_nodes_agree_on_an_answer_and_what_each_said_is_told(cluster: Cluster, client: AsyncClient) -> None:
    await cluster.spawn(3)
    plain = await _ask(cluster, Message("user", QUESTION))
    await client.write_file("fusion/ctl", f"{GREEDY}fusion majority-vote 3")
    async with client.open("fusion/data", "rw") as data:
        await data.write(QUESTION)
        assert (await data.read_all()).decode() == plain
    document = json.loads(await client.read_file("fusion/last-result"))
    assert (document["text"], document["finish_reason"], document["tokens"]) == (plain, "length", 12)
    outcome = fusion_of(document["fusion"])
    assert (outcome.strategy, outcome.agreement, outcome.asked) == ("majority-vote", 1.0, 3)
    lines = (await client.read_file("fusion/tally")).decode().splitlines()
    assert [line.split()[0] for line in lines] == [f"node={vote.node}" for vote in outcome.votes]
    assert len({vote.node for vote in outcome.votes}) == len(outcome.votes) >= 2
    assert cluster.cluster_status().slots.busy == 0


async def test_a_session_goes_on_with_what_was_agreed_on_token_by_token(cluster: Cluster, client: AsyncClient) -> None:
    await cluster.spawn(2)
    async with client.open("clone", "rw") as ctl:
        path = f"sessions/{(await ctl.read()).decode().strip()}"
        await ctl.write(f"{GREEDY}fusion token-average 2")
        for prompt in (QUESTION, "Say it again."):
            await client.write_file(f"{path}/prompt", prompt)
            async with client.open(f"{path}/stream") as stream, client.open(f"{path}/tally") as tally:
                said = (await stream.read_all()).decode()
                votes = (await tally.read_all()).decode().splitlines()
            assert said
            assert len(votes) == 2
            assert b"strategy token-average\n" in await client.read_file(f"{path}/status")
        assert (await client.read_file(f"{path}/history")).count(b"\nassistant\n") == 2


async def test_a_model_of_noise_reaches_no_quorum_and_its_question_can_be_read_in_the_tally(
    client: AsyncClient, tiny_model: Path
) -> None:
    await client.write_file("ctl", f"spawn 3 model={tiny_model}")
    await client.write_file("fusion/ctl", "max_tokens 8\ntemperature 2\nfusion quorum 3 min_consensus=3")
    async with client.open("fusion/data", "rw") as data:
        await data.write("go on")
        with pytest.raises(NoQuorum, match="no quorum: 1 of 3 nodes agree, 3 are needed"):
            await data.read_all()
    document = json.loads(await client.read_file("fusion/last-result"))
    assert document["error"]["code"] == "no_quorum"
    assert fusion_of(document["fusion"]).answered >= 2
    assert (await client.read_file("error")).startswith(b"no quorum: 1 of 3 nodes agree")


async def test_who_hangs_up_frees_the_slots_of_all_voters(
    cluster: Cluster, client: AsyncClient, tiny_model: Path
) -> None:
    await client.write_file("ctl", f"spawn 3 model={tiny_model}")
    async with client.open("fusion/data", "rw") as data:
        await data.write("go on for ever")
        reading = asyncio.create_task(data.read())
        async with asyncio.timeout(20):
            while cluster.cluster_status().slots.busy < 3:
                await asyncio.sleep(0.005)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
    async with asyncio.timeout(20):
        while cluster.cluster_status().slots.busy:
            await asyncio.sleep(0.005)
