"""The checkpoint of a running cluster: saved after a change, restored with the same nodes, frank about what fails."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from llambo.cluster import checkpoint
from llambo.cluster.api import Cluster
from llambo.cluster.checkpoint import Checkpoint, ModelState, NodeState
from llambo.cluster.events import NodeWanted
from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.core.errors import BadRequest, LlamboError, NotFound
from llambo.core.types import Done, GenerateRequest, LoadOptions, Sampling
from tests.cluster.clusters import quick, until
from tests.cluster.llama_server import llama_server


def saved(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_bytes()) if path.exists() else {"nodes": [], "strategy": ""}
    return document


async def test_a_restored_cluster_has_the_same_nodes_models_and_strategy(tmp_path: Path, walk_model: Path) -> None:
    path = tmp_path / "state.json"
    async with Cluster(quick(), state_path=path) as cluster:
        await cluster.load(str(walk_model), name="walker", options=LoadOptions(ctx=256, slots=3, threads=1))
        await cluster.spawn(2, node_type="tiny", model="built-in")
        await cluster.pin("walker", pinned=True)
        cluster.set_strategy("least-loaded")
        await cluster.kill("n2")
        await until(lambda: [node["id"] for node in saved(path)["nodes"]] == ["n1", "n3"])
        before = [(n.id, n.type, n.model, n.slots, n.ctx) for n in await cluster.nodes()]
    assert path.stat().st_mode & 0o777 == 0o600
    async with Cluster(quick(), state_path=path) as cluster:
        assert await cluster.restore_checkpoint() == []
        assert [(n.id, n.type, n.model, n.slots, n.ctx) for n in await cluster.nodes()] == before
        assert cluster.cluster_status().strategy == "least-loaded"
        assert cluster.checkpoint()["models"][0]["pinned"] is True
        assert [model.name for model in cluster.status().models] == ["walker", "built-in"]
        (node,) = await cluster.spawn(1, node_type="tiny", model="built-in")
        assert node.id == "n4", "an id is never used twice"


async def test_what_cannot_be_restored_is_told_and_the_rest_is_there(tmp_path: Path, walk_model: Path) -> None:
    path, model = tmp_path / "state.json", tmp_path / "moving.gguf"
    shutil.copy(walk_model, model)
    async with Cluster(quick(), state_path=path) as cluster:
        await cluster.spawn(1, node_type="tiny", model=str(model))
        await cluster.spawn(1, node_type="tiny", model="built-in")
        await until(lambda: len(saved(path)["nodes"]) == 2)
    model.unlink()
    async with Cluster(quick(), state_path=path) as cluster:
        problems = await cluster.restore_checkpoint()
        assert len(problems) == 2
        assert "model moving" in problems[0]
        assert "node n1: its model moving is not there" in problems[1]
        assert [node.id for node in await cluster.nodes()] == ["n2"]


async def test_what_could_not_be_restored_stays_in_the_checkpoint_and_comes_back_later(
    tmp_path: Path, walk_model: Path
) -> None:
    path, model = tmp_path / "state.json", tmp_path / "moving.gguf"
    shutil.copy(walk_model, model)
    async with Cluster(quick(), state_path=path) as cluster:
        await cluster.spawn(2, node_type="tiny", model=str(model))
        await cluster.spawn(1, node_type="tiny", model="built-in")
        await until(lambda: len(saved(path)["nodes"]) == 3)
    before = saved(path)
    model.rename(tmp_path / "away.gguf")
    async with Cluster(quick(), state_path=path) as cluster:
        assert len(await cluster.restore_checkpoint()) == 3
        assert len(cluster._keeper.problems) == 3
        assert cluster._keeper.problems[0].startswith("not restored: model moving: ")
        cluster.set_strategy("random")
        await until(lambda: saved(path)["strategy"] == "random")
        assert (saved(path)["models"], saved(path)["nodes"]) == (before["models"], before["nodes"])
    assert (saved(path)["models"], saved(path)["nodes"]) == (before["models"], before["nodes"])
    (tmp_path / "away.gguf").rename(model)
    async with Cluster(quick(), state_path=path) as cluster:
        assert await cluster.restore_checkpoint() == []
        assert [node.id for node in await cluster.nodes()] == ["n1", "n2", "n3"]
        assert [info.name for info in cluster.status().models] == ["moving", "built-in"], "the default one is the first"
        assert cluster._keeper.problems == ()


async def test_nodes_that_were_not_restored_are_dropped_with_their_model(tmp_path: Path, walk_model: Path) -> None:
    path = tmp_path / "state.json"
    lost = ModelState("lost", str(tmp_path / "none.gguf"))
    walk = ModelState("walk", str(walk_model), LoadOptions(ctx=256, slots=1))
    taken = NodeState("n3", "tiny", "lost", 1)
    checkpoint.write(path, Checkpoint(1.0, "", (lost, walk), (NodeState("n1", "tiny", "walk"), taken)))
    async with Cluster(quick(), state_path=path) as cluster:
        await cluster.restore_checkpoint()
        await until(lambda: [node["id"] for node in saved(path)["nodes"]] == ["n1", "n3"])
        assert not cluster._keeper.forget("walk"), "of that nothing is missing"
        assert cluster._keeper.forget("lost")
        await until(lambda: [node["id"] for node in saved(path)["nodes"]] == ["n1"])
        assert [model["name"] for model in saved(path)["models"]] == ["walk"]
        assert cluster._keeper.problems == ()


async def test_nothing_is_saved_before_a_restore_has_ended(
    tmp_path: Path, walk_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    walk = ModelState("walk", str(walk_model), LoadOptions(ctx=256, slots=1))
    nodes = tuple(NodeState(f"n{number}", "tiny", "walk", 1) for number in (1, 2))
    checkpoint.write(path, Checkpoint(1.0, "random", (walk,), nodes))
    written = path.read_bytes()
    may_start = asyncio.Event()
    async with Cluster(quick(), state_path=path) as cluster:
        start = cluster._operating.start

        async def start_later(wanted: NodeWanted) -> str:
            if wanted.id == "n2":
                await may_start.wait()
            return await start(wanted)

        monkeypatch.setattr(cluster._operating, "start", start_later)
        restoring = asyncio.create_task(cluster.restore_checkpoint())
        await until(lambda: cluster.cluster_status().nodes.ready == 1)
        cluster.set_strategy("least-loaded")
        assert {node["id"] for node in cluster.checkpoint()["nodes"]} == {"n1", "n2"}, "they are wanted all the time"
        assert cluster._keeper._timer is None, "a save is due"
        assert path.read_bytes() == written
        may_start.set()
        assert await restoring == []
        await until(lambda: saved(path)["strategy"] == "least-loaded")
    assert [node["id"] for node in saved(path)["nodes"]] == ["n1", "n2"]


async def test_a_restore_that_is_cancelled_forgets_nothing(tmp_path: Path, walk_model: Path) -> None:
    path = tmp_path / "state.json"
    walk = ModelState("walk", str(walk_model), LoadOptions(ctx=256, slots=1))
    nodes = tuple(NodeState(f"n{number}", "tiny", "walk", 1) for number in range(1, 9))
    checkpoint.write(path, Checkpoint(1.0, "random", (walk,), nodes))
    async with Cluster(quick(), state_path=path) as cluster:
        restoring = asyncio.create_task(cluster.restore_checkpoint())
        await until(lambda: cluster.cluster_status().nodes.total)
        restoring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await restoring
    assert [node["id"] for node in saved(path)["nodes"]] == [node.id for node in nodes]


async def test_closing_saves_a_change_that_came_during_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    begun, go_on = threading.Event(), threading.Event()
    real = checkpoint.write

    def slow(where: Path, state: Checkpoint) -> None:
        begun.set()
        assert go_on.wait(10)
        real(where, state)

    monkeypatch.setattr(checkpoint, "write", slow)
    async with Cluster(quick(), state_path=path) as cluster:
        cluster.set_strategy("random")
        await until(begun.is_set)
        cluster.set_strategy("least-loaded")
        closing = asyncio.create_task(cluster.close())
        await asyncio.sleep(0)
        go_on.set()
        await closing
    assert saved(path)["strategy"] == "least-loaded"


async def test_a_checkpoint_that_cannot_be_written_is_a_problem_until_it_can(tmp_path: Path) -> None:
    blocker = tmp_path / "blocked"
    blocker.write_text("a file where a directory is needed")
    async with Cluster(quick(), state_path=blocker / "state.json") as cluster:
        await cluster.spawn(1, node_type="tiny")
        await until(lambda: cluster.cluster_status().problems)
        assert "cannot write the checkpoint" in cluster.cluster_status().problems[0]
        assert cluster.cluster_status().state == "degraded"
        answer = [event async for event in cluster.generate(GenerateRequest.from_prompt("hello"))]
        assert isinstance(answer[-1], Done)
        blocker.unlink()
        cluster.set_strategy("random")
        await until(lambda: not cluster.cluster_status().problems)
    assert saved(blocker / "state.json")["strategy"] == "random"


async def test_what_was_configured_since_then_beats_the_checkpoint(tmp_path: Path, walk_model: Path) -> None:
    path = tmp_path / "state.json"
    async with Cluster(quick(), state_path=path) as cluster:
        await cluster.spawn(1, node_type="tiny")
        cluster.set_strategy("random")
        await until(lambda: saved(path).get("strategy") == "random")
    async with Cluster(quick(), state_path=path) as cluster:
        await cluster.restore_checkpoint()
        assert cluster.cluster_status().strategy == "random", "nobody has said otherwise since"
    settings = quick(load_balancer={"strategy": "least-loaded"}, models={"default": str(walk_model)})
    async with Cluster(settings, state_path=path) as cluster:
        assert await cluster.restore_checkpoint() == []
        assert cluster.cluster_status().strategy == "least-loaded"
        assert [(m.name, m.is_default, m.state) for m in cluster.status().models] == [
            ("walk", True, "ready"),
            ("built-in", False, "ready"),
        ]


async def test_a_number_of_a_lost_node_is_not_given_again(tmp_path: Path, walk_model: Path) -> None:
    path, model = tmp_path / "state.json", tmp_path / "moving.gguf"
    shutil.copy(walk_model, model)
    async with Cluster(quick(), state_path=path) as cluster:
        await cluster.spawn(1, node_type="tiny", model="built-in")
        await cluster.spawn(1, node_type="tiny", model=str(model))
        await until(lambda: len(saved(path)["nodes"]) == 2)
    model.unlink()
    async with Cluster(quick(), state_path=path) as cluster:
        assert len(await cluster.restore_checkpoint()) == 2
        assert cluster.cluster_status().state == "degraded"
        (node,) = await cluster.spawn(1, node_type="tiny", model="built-in")
        assert node.id == "n3"
        await cluster.free("moving")
        assert cluster.cluster_status().problems == ()


async def test_a_checkpoint_for_a_directory_that_is_not_there_is_refused(tmp_path: Path) -> None:
    async with Cluster(quick(), state_path=tmp_path / "state.json") as cluster:
        with pytest.raises(LlamboError, match="there is no directory"):
            await cluster.save_checkpoint(tmp_path / "typo" / "x.json")
        assert not (tmp_path / "typo").exists()


async def test_no_checkpoint_and_a_damaged_one_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    async with Cluster(quick(), state_path=path) as cluster:
        with pytest.raises(NotFound, match=r"no checkpoint at .*state\.json"):
            await cluster.restore_checkpoint()
        path.write_text('{"version": 1, "nodes": "many"}')
        with pytest.raises(BadRequest, match="damaged"):
            await cluster.restore_checkpoint()
        assert cluster.cluster_status().nodes.total == 0


async def test_an_attached_server_is_restored_with_its_key_from_the_environment(
    tmp_path: Path, walk_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.json"
    async with llama_server(walk_model, ctx=512, key="open-sesame") as server:
        async with Cluster(quick(), state_path=path) as cluster:
            await cluster.attach(server.url, api_key="open-sesame", api_key_env="SESAME")
            await until(lambda: len(saved(path)["nodes"]) == 1)
        assert "open-sesame" not in path.read_text()
        monkeypatch.setenv("SESAME", "open-sesame")
        async with Cluster(quick(), state_path=path) as cluster:
            assert await cluster.restore_checkpoint() == []
            request = GenerateRequest.from_prompt("hello", sampling=Sampling(max_tokens=4, temperature=0))
            assert [event async for event in cluster.generate(request)]
        monkeypatch.delenv("SESAME")
        async with Cluster(quick(), state_path=path) as cluster:
            assert await cluster.restore_checkpoint() == []
            (node,) = await cluster.nodes()
            assert (node.id, node.address, node.state) == ("n1", server.url, "dead"), (
                "without its key it cannot be used"
            )


async def test_an_attached_server_that_is_not_there_is_dialled_again_later(tmp_path: Path, walk_model: Path) -> None:
    path, link = tmp_path / "state.json", tmp_path / "server.sock"
    servers = LocalLauncher(tmp_path / "servers")
    try:
        first = await servers.spawn(NodeRequest("s1", str(walk_model), LoadOptions(ctx=512, slots=2)), timeout_s=30)
        link.symlink_to(first.socket_path)
        async with Cluster(quick(), state_path=path) as cluster:
            await cluster.attach(f"unix://{link}")
            await until(lambda: len(saved(path)["nodes"]) == 1)
        (node,) = saved(path)["nodes"]
        assert (node["id"], node["slots"], node["ctx"]) == ("n1", 2, 512)
        await servers.terminate("s1")
        async with Cluster(quick(), state_path=path) as cluster:
            assert await cluster.restore_checkpoint() == []
            assert [info.id for info in await cluster.nodes()] == ["n1"]
            assert cluster.cluster_status().nodes.ready == 0
            request = NodeRequest("s2", str(walk_model), LoadOptions(ctx=512, slots=2))
            second = await servers.spawn(request, timeout_s=30)
            link.unlink()
            link.symlink_to(second.socket_path)
            await until(lambda: cluster.cluster_status().nodes.ready == 1, 30)
        assert saved(path)["nodes"] == [node]
    finally:
        await servers.close()
