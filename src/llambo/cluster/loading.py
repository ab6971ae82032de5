"""LOAD and FREE: a model under a name, with options of its own, served by one node.

Owns loads in progress: equal ones are one, one that nobody waits for is given up, and freeing ends either.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container, Coroutine
from dataclasses import dataclass

from llambo.cluster.catalogue import CUSTOM, Catalogue, Entry
from llambo.cluster.events import NodeWanted, RestartWanted
from llambo.cluster.operating import Operating
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import POOLING_TYPES
from llambo.cluster.world import is_coming, serves
from llambo.core.errors import NameInUse, NoModel
from llambo.core.types import LoadOptions

log = logging.getLogger("llambo.cluster")


@dataclass(slots=True)
class _Loading:
    """A load in progress: what is wanted, the work, and how many wait for it."""

    wanted: tuple[str, LoadOptions]
    task: asyncio.Task[None]
    waiters: int = 0
    is_given_up: bool = False

    def give_up(self) -> None:
        """Ends the work, if it has not ended by itself."""
        self.is_given_up = True
        self.task.cancel()


class Loads:
    """The loads of one cluster."""

    def __init__(self, runtime: Runtime, catalogue: Catalogue, operating: Operating) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._operating = operating
        self._loading: dict[str, _Loading] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def in_progress(self) -> Container[str]:
        """Names of models that are being loaded."""
        return self._loading

    async def close(self) -> None:
        """Gives every load up and returns when all work has ended."""
        loads = [loading.task for loading in self._loading.values()]
        for task in loads:
            task.cancel()
        await asyncio.gather(*loads, *self._tasks, return_exceptions=True)

    async def load(self, ref: str, name: str, options: LoadOptions) -> None:
        """See `Door.load`."""
        self._runtime.check_open()
        loading = self._loading.get(name)
        while loading is not None and loading.is_given_up:
            await asyncio.wait([loading.task])
            self._ended(name, loading)
            loading = self._loading.get(name)
        if loading is None:
            task = asyncio.create_task(self._load(ref, name, options), name=f"load {name}")
            loading = mine = self._loading[name] = _Loading((ref, options), task)
            task.add_done_callback(lambda _: self._ended(name, mine))
        elif loading.wanted != (ref, options):
            raise NameInUse(f"another model is being loaded as {name!r}; choose a name with as=NAME")
        loading.waiters += 1
        try:
            await asyncio.shield(loading.task)
        except asyncio.CancelledError:
            if loading.task.cancelled():
                raise NoModel(f"model {name} was freed before it was loaded") from None
            raise
        finally:
            loading.waiters -= 1
            if not loading.waiters:
                loading.give_up()

    async def give_up(self, name: str) -> None:
        """Ends a load in progress under that name, if there is one."""
        if loading := self._loading.get(name):
            loading.give_up()
            await asyncio.wait([loading.task])

    async def remove(self, name: str) -> None:
        """Ends the model's nodes and forgets it, also when the caller is cancelled meanwhile."""
        await self._finish(self._operating.remove(name))
        log.info("freed model %s", name)

    async def _load(self, ref: str, name: str, options: LoadOptions) -> None:
        catalogue = self._catalogue
        file = await catalogue.find(ref)
        entry = catalogue.entry(name, ref, file, options, CUSTOM)
        present = catalogue.entries.get(name)
        if present is not None and present.options != entry.options:
            raise NameInUse(f"{name!r} is {present.path} already; FREE {name} first, or load it as=NAME")
        if present is None or not self._runtime.orchestrator.world.models[name].pools:
            await self._operating.check_room(entry, entry.options)
        if present is None:
            self._operating.add(entry)
        try:
            await self._until_served(entry)
        except BaseException:
            if present is None:
                await self._finish(self._operating.remove(name))
            raise
        log.info("loaded model %s from %s", name, entry.path)

    async def _until_served(self, entry: Entry) -> None:
        """Returns once a node serves the model; starts one where none is coming."""
        nodes = self._runtime.orchestrator.world.models[entry.name].nodes()
        nodes = [node for node in nodes if node.type not in POOLING_TYPES]
        if any(serves(node) for node in nodes):
            return
        for node in nodes:
            if node.is_given_up:
                ready = self._runtime.until_ready(node.id)
                self._runtime.post(RestartWanted(node.id))
                await ready
                return
            if is_coming(node):
                await self._runtime.until_ready(node.id)
                return
        await self._operating.start(NodeWanted(entry.name, entry.node_type, entry.options))

    def _ended(self, name: str, loading: _Loading) -> None:
        if self._loading.get(name) is loading:
            del self._loading[name]
        # Asked for here too: all who waited may have gone away meanwhile.
        if not loading.task.cancelled() and (error := loading.task.exception()) is not None:
            log.warning("model %s was not loaded: %s", name, error)

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Awaits `work`, which goes on to its end when the caller is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)
