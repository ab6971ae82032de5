"""A `Control` in memory: nodes are entries in a dict, and every call is noted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import Any

from llambo.cluster.control import (
    BalancerStats,
    ClusterEvent,
    ClusterStatus,
    NodeCounts,
    NodeInfo,
    RequestCounts,
    SlotCounts,
    SpawnProgress,
)
from llambo.core.errors import BadRequest, NotFound

NODE = NodeInfo(
    id="n1",
    type="tiny",
    state="ready",
    pid=0,
    epoch=1,
    machine="here",
    model="m",
    slots=1,
    busy=0,
    address="",
    socket="",
    sandbox=("files",),
    rss_bytes=0,
    uss_bytes=0,
    requests=0,
    errors=0,
    launcher="local",
    ctx=512,
    tokens_per_s=0.0,
    reason="",
    log="",
)


class FakeControl:
    """Has the nodes that were asked for; `hold` makes calls that start nodes wait until it is set."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.by_id: dict[str, NodeInfo] = {}
        self.strategy = "random"
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = asyncio.Event()
        self.happened: asyncio.Queue[ClusterEvent] = asyncio.Queue()

    async def spawn(
        self,
        count: int,
        *,
        node_type: str = "",
        model: str = "",
        slots: int = 0,
        progress: SpawnProgress | None = None,
    ) -> list[NodeInfo]:
        self.calls.append(("spawn", count, node_type, model, slots))
        if count < 1:
            raise BadRequest(f"count must be at least 1, not {count}")
        new = []
        for ready in range(1, count + 1):
            try:
                await self.hold.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
            new.append(replace(NODE, id=f"n{len(self.by_id) + 1}", type=node_type or "tiny"))
            self.by_id[new[-1].id] = new[-1]
            if progress is not None:
                progress(ready, count)
        return new

    async def attach(self, url: str, *, node_type: str = "", api_key: str = "", api_key_env: str = "") -> NodeInfo:
        self.calls.append(("attach", url, node_type, api_key, api_key_env))
        return replace(NODE, address=url)

    async def detach(self, node_id: str) -> None:
        self._end("detach", node_id)

    async def scale(self, count: int, *, model: str = "", progress: SpawnProgress | None = None) -> list[NodeInfo]:
        self.calls.append(("scale", count, model))
        return await self.spawn(count - len(self.by_id), progress=progress)

    async def drain(self, node_id: str) -> None:
        self._end("drain", node_id)

    async def kill(self, node_id: str) -> None:
        self._end("kill", node_id)

    async def restart(self, node_id: str) -> NodeInfo:
        return replace(self._end("restart", node_id), epoch=2)

    async def pin(self, model: str, *, pinned: bool) -> None:
        self.calls.append(("pin", model, pinned))

    def set_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def balancer_stats(self) -> BalancerStats:
        return BalancerStats(self.strategy, 3, 0, 0, 0, 10, 5, {"n1": 3})

    async def nodes(self) -> list[NodeInfo]:
        return list(self.by_id.values())

    def cluster_status(self) -> ClusterStatus:
        counts = NodeCounts(len(self.by_id), len(self.by_id), 0, 0)
        requests = RequestCounts(3, 1, 0, 0, 0)
        return ClusterStatus(
            "ready", "1", "local", self.strategy, 1.5, counts, SlotCounts(1, 0), 0, requests, 0.0, (), (), "/h", 1
        )

    async def events(self) -> AsyncGenerator[ClusterEvent, None]:
        try:
            while True:
                yield await self.happened.get()
        finally:
            self.cancelled.set()

    def metrics(self) -> str:
        return "llambo_nodes 1\n"

    def checkpoint(self) -> dict[str, Any]:
        return {"version": 1}

    async def save_checkpoint(self, path: Path | None = None) -> Path:
        return path or Path("/usual")

    async def restore_checkpoint(self, path: Path | None = None) -> list[str]:
        raise RuntimeError("a fault of ours")

    def _end(self, call: str, node_id: str) -> NodeInfo:
        self.calls.append((call, node_id))
        if node_id not in self.by_id:
            raise NotFound(f"no node is called {node_id!r}")
        return self.by_id.pop(node_id)
