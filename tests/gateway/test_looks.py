"""`/health`, `/ready` and `/metrics` over real HTTP, with a real cluster behind them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lookers import SMALL, Served, serving
from prometheus_client.parser import text_string_to_metric_families
from prometheus_lint import check_metrics

from llambo.cluster.api import Cluster
from llambo.core.errors import LlamboError
from llambo.core.types import GenerateRequest, Sampling

GREEDY = Sampling(max_tokens=5, temperature=0)


async def get(served: Served, path: str, token: str = "") -> tuple[int, dict[str, str], str]:
    """A request by hand: status, headers, body."""
    host, port = served.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = [f"GET {path} HTTP/1.1", f"Host: {served.address}", "Connection: close"]
    writer.write("\r\n".join([*head, *([f"X-API-Key: {token}"] if token else []), "", ""]).encode())
    reply = (await asyncio.wait_for(reader.read(-1), 10)).decode()
    writer.close()
    head_text, _, body = reply.partition("\r\n\r\n")
    status, *lines = head_text.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if headers.get("transfer-encoding") == "chunked":
        raise AssertionError("these replies have a length")
    return int(status.split(" ")[1]), headers, body


async def readiness(served: Served) -> tuple[int, dict[str, Any]]:
    status, _, body = await get(served, "/ready")
    return status, json.loads(body)


async def ask(cluster: Cluster, prompt: str = "hello") -> None:
    async for _ in cluster.generate(GenerateRequest.from_prompt(prompt, sampling=GREEDY)):
        pass


def by_node(page: str, name: str) -> dict[str, float]:
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {sample.labels["node"]: sample.value for sample in samples if sample.name == name}


async def test_health_is_ok_for_everybody_for_as_long_as_the_process_lives(tmp_path: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path, require_token=True) as served:
        status, headers, body = await get(served, "/health")
        assert (status, json.loads(body)) == (200, {"status": "ok"})
        assert headers["content-type"] == "application/json"
        assert (await get(served, "/ready"))[0] == 503
        assert (await get(served, "/metrics"))[0] == 401


async def test_ready_once_a_node_serves_and_else_it_says_what_is_missing(tmp_path: Path, walk_model: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path) as served:
        assert await readiness(served) == (
            503,
            {
                "status": "not_ready",
                "nodes": 0,
                "slots": 0,
                "busy": 0,
                "queued": 0,
                "problems": ["no model is loaded, and there is none on this machine that a request could load"],
            },
        )
        await cluster.load(str(walk_model), options=SMALL)
        ready = {"status": "ready", "nodes": 1, "slots": 2, "busy": 0, "queued": 0, "problems": []}
        assert await readiness(served) == (200, ready)
        answer = cluster.generate(GenerateRequest.from_prompt("x", sampling=Sampling(max_tokens=400)))
        await anext(answer)
        assert (await readiness(served))[1]["busy"] == 1
        await answer.aclose()


async def test_a_model_that_a_request_would_load_is_as_good_as_a_loaded_one(tmp_path: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path, on_demand=("built-in",)) as served:
        assert (await readiness(served))[1] == {
            "status": "ready",
            "nodes": 0,
            "slots": 0,
            "busy": 0,
            "queued": 0,
            "problems": [],
        }


async def test_a_model_whose_nodes_have_failed_is_named_without_paths(tmp_path: Path, walk_model: Path) -> None:
    model = tmp_path / "mine.gguf"
    model.write_bytes(walk_model.read_bytes())
    async with Cluster() as cluster, serving(cluster, tmp_path) as served:
        info = await cluster.load(str(model), options=SMALL)
        model.unlink()
        gone = asyncio.Event()

        async def watch() -> None:
            async for event in cluster.events():
                if event.kind == "node_given_up":
                    gone.set()

        watcher = asyncio.create_task(watch())
        await asyncio.sleep(0)  # its first step subscribes
        os.kill(info.pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while (seen := await readiness(served))[0] != 503:
                await asyncio.sleep(0.01)
            assert seen[1]["problems"] == ["model mine has no node: it is being restarted"]
            await gone.wait()
        assert (await readiness(served))[1]["problems"] == ["model mine cannot be loaded: its nodes have failed"]
        with pytest.raises(LlamboError):  # as it says
            await ask(cluster)
        watcher.cancel()


async def test_the_figures_of_cluster_and_nodes_are_one_page_that_prometheus_takes(
    tmp_path: Path, walk_model: Path
) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path) as served:
        await cluster.load(str(walk_model), options=SMALL)
        await cluster.spawn(1)
        for number in range(6):
            await ask(cluster, f"text {number}")
        _, headers, page = await get(served, "/metrics")
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        check_metrics(page)
        assert 'llambo_tokens_total{kind="generated"} 30.0\n' in page
        counted = by_node(page, "llamacpp_tokens_predicted_total")
        assert set(counted) == {"n1", "n2"}
        assert sum(counted.values()) >= 30  # and what started a node
        assert by_node(page, "llamacpp_requests_processing") == {"n1": 0, "n2": 0}
        assert page.startswith(cluster.metrics())


async def test_a_node_that_hangs_is_left_out_and_the_page_comes_in_time(tmp_path: Path, walk_model: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path) as served:
        info = await cluster.load(str(walk_model), options=SMALL)
        await cluster.spawn(1)
        os.kill(info.pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(4):  # a second for the node, and what a busy machine adds
                _, _, page = await get(served, "/metrics")
        finally:
            os.kill(info.pid, signal.SIGCONT)
        check_metrics(page)
        assert set(by_node(page, "llamacpp_tokens_predicted_total")) == {"n2"}


async def test_a_cluster_without_nodes_has_its_own_figures(tmp_path: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path) as served:
        _, _, page = await get(served, "/metrics")
        check_metrics(page)
        assert page == cluster.metrics()


async def test_a_token_for_reading_may_see_the_figures(tmp_path: Path) -> None:
    async with Cluster() as cluster, serving(cluster, tmp_path, require_token=True) as served:
        _, secret = served.tokens.create("read")
        status, _, page = await get(served, "/metrics", secret)
        assert status == 200
        assert "llambo_nodes" in page
        assert secret not in page
