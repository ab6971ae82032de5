"""A namespace over a cluster in memory, on a real socket, and clients of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
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
from llambo.cluster.door import DoorStatus
from llambo.core.errors import BadRequest, LlamboError, NoModel, NotFound
from llambo.core.fusion import Fusion, VoteCast
from llambo.core.tokens import TokenStore
from llambo.core.types import Counters, Done, Event, GenerateRequest, LoadOptions, ModelInfo, TokenEvent
from llambo.namespace.render import Facts
from llambo.namespace.server import Namespace
from llambo.ninep.client import AsyncClient
from llambo.ninep.server import FileServer

WAIT_S = 20.0

NODE = NodeInfo(
    id="n1",
    type="tiny",
    state="ready",
    pid=0,
    epoch=1,
    machine="here",
    model="m",
    slots=4,
    busy=1,
    address="",
    socket="",
    sandbox=("files",),
    rss_bytes=0,
    uss_bytes=0,
    requests=7,
    errors=0,
    launcher="local",
    ctx=512,
    tokens_per_s=0.0,
    reason="",
    log="",
)
MODEL = ModelInfo("m", "/models/m.gguf", "ready", 512, 4, 1, "n1", 0, True)


class FakeCluster:
    """A `Door`, a `Control` and a `NodeLook` in memory. Answers are scripted: each piece waits for `gate`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.by_id: dict[str, NodeInfo] = {"n1": NODE}
        self.models: dict[str, ModelInfo] = {"m": MODEL}
        self.strategy = "random"
        self.made = 1
        self.pieces: list[str | VoteCast | LlamboError] = ["one ", "two ", "drei€"]
        self.fusion: Fusion | None = None
        self.requests: list[GenerateRequest] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.closed = asyncio.Event()
        self.closings = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.cancelled = asyncio.Event()
        self.happened: list[asyncio.Queue[ClusterEvent]] = []
        self.problems: list[str] = []
        self.fault: Exception | None = None
        self.troubles: tuple[str, ...] = ("n9 is dead:\nbroken",)

    # Door

    async def load(self, ref: str, *, name: str = "", options: LoadOptions | None = None) -> ModelInfo:
        self.calls.append(("load", ref, name))
        self.models[name] = replace(MODEL, name=name, is_default=False)
        return self.models[name]

    async def free(self, name: str = "") -> None:
        self.calls.append(("free", name))
        del self.models[name]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        text = ""
        try:
            for piece in self.pieces:
                await self.gate.wait()
                if isinstance(piece, LlamboError):
                    raise piece
                if isinstance(piece, VoteCast):
                    yield piece
                    continue
                text += piece
                yield TokenEvent(piece)
            yield Done("stop", "m", "n1", len(self.pieces), 5, 2, 1.5, 9.0, 0, self.fusion)
        finally:
            self.closings += 1
            self.closed.set()

    async def tokenize(self, text: str, *, model: str = "") -> list[int]:
        raise NoModel

    async def embed(self, text: str, *, model: str = "") -> list[float]:
        raise NoModel

    def status(self) -> DoorStatus:
        return DoorStatus(tuple(self.models.values()), Counters(), 1.5)

    # Control

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
            self.made += 1
            new.append(replace(NODE, id=f"n{self.made}", type=node_type or "tiny", model=model or "m"))
            self.by_id[new[-1].id] = new[-1]
            if progress is not None:
                progress(ready, count)
        return new

    async def attach(self, url: str, *, node_type: str = "", api_key: str = "", api_key_env: str = "") -> NodeInfo:
        self.calls.append(("attach", url, node_type, api_key, api_key_env))
        if url == "nowhere":
            raise BadRequest("'nowhere' is no URL")
        return NODE

    async def detach(self, node_id: str) -> None:
        self._end("detach", node_id)

    async def scale(self, count: int, *, model: str = "", progress: SpawnProgress | None = None) -> list[NodeInfo]:
        self.calls.append(("scale", count, model))
        if count > len(self.by_id):
            await self.spawn(count - len(self.by_id), progress=progress)
        return list(self.by_id.values())

    async def drain(self, node_id: str) -> None:
        self._end("drain", node_id)

    async def kill(self, node_id: str) -> None:
        self._end("kill", node_id)

    async def restart(self, node_id: str) -> NodeInfo:
        self.calls.append(("restart", node_id))
        return self.by_id[node_id]

    async def pin(self, model: str, *, pinned: bool) -> None:
        self.calls.append(("pin", model, pinned))

    def set_strategy(self, strategy: str) -> None:
        if strategy not in {"random", "round-robin"}:
            raise BadRequest(f"there is no strategy {strategy!r}; there are random, round-robin")
        self.strategy = strategy

    def balancer_stats(self) -> BalancerStats:
        return BalancerStats(self.strategy, 3, 0, 0, 0, 10, 5, {"n1": 3})

    async def nodes(self) -> list[NodeInfo]:
        return [replace(node, rss_bytes=1000) for node in self.by_id.values()]

    def cluster_status(self) -> ClusterStatus:
        counts = NodeCounts(len(self.by_id), len(self.by_id), 0, 0)
        return ClusterStatus(
            state="ready",
            version="1",
            launcher="local",
            strategy=self.strategy,
            uptime_s=1.5,
            nodes=counts,
            slots=SlotCounts(4, 1),
            queued=0,
            requests=RequestCounts(3, 1, 0, 0, 0),
            tokens_per_s=2.0,
            models=tuple(self.models.values()),
            problems=self.troubles,
            home="/home/x",
            pid=1,
        )

    async def events(self) -> AsyncGenerator[ClusterEvent, None]:
        queue: asyncio.Queue[ClusterEvent] = asyncio.Queue()
        self.happened.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.happened.remove(queue)

    def publish(self, event: ClusterEvent) -> None:
        for queue in self.happened:
            queue.put_nowait(event)

    def metrics(self) -> str:
        return "llambo_nodes 1\n"

    async def node_metrics(self) -> str:
        return ""

    def checkpoint(self) -> dict[str, Any]:
        return {"version": 1}

    async def save_checkpoint(self, path: Path | None = None) -> Path:
        return path or Path("/usual")

    async def restore_checkpoint(self, path: Path | None = None) -> list[str]:
        self.calls.append(("restore", path))
        if self.fault is not None:
            raise self.fault
        return self.problems

    # NodeLook

    def node_ids(self) -> Mapping[str, object]:
        return self.by_id

    def node_info(self, node_id: str) -> NodeInfo:
        return self.by_id[node_id]

    def _end(self, call: str, node_id: str) -> None:
        self.calls.append((call, node_id))
        if node_id not in self.by_id:
            raise NotFound(f"no node is called {node_id!r}")
        del self.by_id[node_id]


class World:
    """A namespace that is served, and what belongs to it."""

    def __init__(self, cluster: FakeCluster, namespace: Namespace, server: FileServer, tokens: TokenStore) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.server = server
        self.tokens = tokens
        self.unix, self.tcp = "", ""
        self.stops: list[bool] = []

    async def client(self, scope: str = "", path: str = "", *, secret: str = "", msize: int = 8192) -> AsyncClient:
        """A client of the Unix socket, or with a scope one with a fresh token over TCP."""
        if scope:
            _, secret = self.tokens.create(scope)  # type: ignore[arg-type]
        aname = f"{secret}/{path}" if secret else path
        return await AsyncClient.connect(self.tcp if secret else self.unix, aname=aname, msize=msize)


@contextlib.asynccontextmanager
async def served(directory: Path, *, idle_s: float = 3600.0) -> AsyncIterator[World]:
    """A namespace on a Unix socket and on TCP, over a cluster in memory."""
    cluster = FakeCluster()
    tokens = TokenStore(directory / "tokens.json")
    stops: list[bool] = []
    namespace = Namespace(
        cluster,
        cluster,
        cluster,
        home=directory / "home",
        request_stop=lambda: stops.append(True),
        facts=lambda: Facts("http://127.0.0.1:1", ("unix!x",), "/home/x/state.json"),
        config=lambda: "models.slots = 4  # default\n",
        tokens=tokens,
        idle_s=idle_s,
        offline=True,
    )
    async with namespace, FileServer(namespace.attach) as server:
        world = World(cluster, namespace, server, tokens)
        world.stops = stops
        world.unix = await server.listen(f"unix!{directory}/s")
        world.tcp = await server.listen("tcp!127.0.0.1!0")
        yield world


async def until(condition: Any) -> None:
    """Returns once `condition()` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


async def names(client: AsyncClient, path: str = "/") -> list[str]:
    return [entry.name for entry in await client.ls(path)]
