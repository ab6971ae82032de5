"""Makes room for a model that is asked for: the least recently used one that may go, goes.

A model that is pinned, busy or starting stays, and so does one of somebody else's server. What is unloaded stays known,
and comes back when it is asked for again. Choosing the victim is pure (`victim`); ending its nodes is the runtime's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from llambo.cluster.events import ModelUnloaded
from llambo.cluster.launch.base import Launcher, NodeRequest
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import Model, NodeState
from llambo.cluster.world import World
from llambo.core.errors import NoMemory


def victim(world: World, wanted: str) -> Model | None:
    """The loaded model that was used longest ago, of those that may go for `wanted` now."""
    candidates = [model for model in _others(world, wanted) if not model.in_flight and not _is_starting(model)]
    return min(candidates, key=lambda model: model.last_used, default=None)


def _others(world: World, wanted: str) -> list[Model]:
    """Models that may go sooner or later."""
    return [
        model
        for model in world.models.values()
        if model.name != wanted and model.pools and not (model.pinned or model.attached)
    ]


def _is_loaded(model: Model) -> bool:
    """Whether it has room already. What starts on demand waits here for its turn, and has none yet."""
    nodes = model.nodes() if not model.attached else []
    return any(not (node.is_on_demand and node.state is NodeState.STARTING) for node in nodes)


def _is_starting(model: Model) -> bool:
    return any(node.state is NodeState.STARTING for node in model.nodes())


class Eviction:
    """Entered before a node starts. `most` models may be loaded at once (0: as memory allows).

    A node waits at most `patience_s` seconds for another model to become idle.
    """

    def __init__(self, most: int, patience_s: float, launcher: Launcher, runtime: Callable[[], Runtime]) -> None:
        self._most = most
        self._patience_s = patience_s
        self._launcher = launcher
        self._runtime = runtime
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def __call__(self, model: str, request: NodeRequest) -> AsyncIterator[None]:
        """Held while a node of `model` starts, so that two do not count the same room.

        Raises: `NoMemory` when there is no room and nothing may go.
        """
        async with self._turn:
            try:
                async with asyncio.timeout(self._patience_s):
                    await self._make(model, request)
            except TimeoutError:
                raise NoMemory(
                    f"there is no room for model {model}: what is loaded was busy for {self._patience_s:g} s"
                ) from None
            yield

    async def _make(self, model: str, request: NodeRequest) -> None:
        world = self._runtime().orchestrator.world
        while not await self._fits(model, request):
            loser = victim(world, model)
            if loser is not None:
                await self._unload(loser)
            elif _others(world, model):
                await self._runtime().until_calmer()
            else:
                raise NoMemory(f"there is no room for model {model}, and nothing that is loaded may be unloaded for it")

    async def _fits(self, model: str, request: NodeRequest) -> bool:
        world = self._runtime().orchestrator.world
        loaded = {name for name, known in world.models.items() if _is_loaded(known)} | {model}
        if self._most and len(loaded) > self._most:
            return False
        room = await self._launcher.room_for(request)
        return room is None or room > 0

    async def _unload(self, model: Model) -> None:
        runtime = self._runtime()
        gone = [runtime.until_gone(node.id) for node in model.nodes()]
        runtime.post(ModelUnloaded(model.name))
        await asyncio.gather(*gone)
