"""Makes room for a model that is asked for: the least recently used one that may go, goes.

A model that is pinned or busy stays. What is unloaded stays known, and comes back when it is asked for again. Choosing
the victim is pure (`victim`); ending its nodes is the runtime's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llambo.cluster.events import KillWanted
from llambo.cluster.launch.base import Launcher, NodeRequest
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import Model
from llambo.cluster.world import World
from llambo.core.errors import NoMemory


def victim(world: World, wanted: str) -> Model | None:
    """The loaded model that was used longest ago, of those that are neither busy, pinned nor `wanted`."""
    candidates = [
        model
        for model in world.models.values()
        if model.name != wanted and model.pools and not (model.in_flight or model.pinned or model.attached)
    ]
    return min(candidates, key=lambda model: model.last_used, default=None)


class Eviction:
    """Called before a node starts. `most` gives how many models may be loaded at once (0: as memory allows)."""

    def __init__(self, most: Callable[[], int], launcher: Launcher, runtime: Callable[[], Runtime]) -> None:
        self._most = most
        self._launcher = launcher
        self._runtime = runtime
        self._turn = asyncio.Lock()  # two models at once must not both count the same room

    async def __call__(self, model: str, request: NodeRequest) -> None:
        """Returns when a node of `model` may start.

        Raises: `NoMemory` when nothing may go and there is no room.
        """
        async with self._turn:
            while not await self._fits(model, request):
                loser = victim(self._runtime().orchestrator.world, model)
                if loser is None:
                    raise NoMemory(
                        f"there is no room for model {model}, and every model that is loaded is busy or pinned"
                    )
                await self._unload(loser)

    async def _fits(self, model: str, request: NodeRequest) -> bool:
        world = self._runtime().orchestrator.world
        loaded = {name for name, known in world.models.items() if known.pools} | {model}
        if self._most() and len(loaded) > self._most():
            return False
        room = await self._launcher.room_for(request)
        return room is None or room > 0

    async def _unload(self, model: Model) -> None:
        runtime = self._runtime()
        gone = [runtime.until_gone(node.id) for node in model.nodes()]
        for node in model.nodes():
            runtime.post(KillWanted(node.id, "its model made room for another"))
        await asyncio.gather(*gone)
