"""The checkpoint of a running cluster: saved after a change, restored with the same nodes, frank about what fails."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llambo.cluster.api import Cluster
from llambo.core.errors import BadRequest, NotFound
from llambo.core.types import Done, GenerateRequest, LoadOptions, Sampling
from tests.cluster.clusters import quick, until
from tests.cluster.llama_server import llama_server


def saved(path: Path) -> dict[str, object]:
    return json.loads(path.read_bytes()) if path.exists() else {"nodes": []}


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
            (problem,) = await cluster.restore_checkpoint()
            assert problem.startswith("node n1: ")
