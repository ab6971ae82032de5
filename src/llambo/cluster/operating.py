"""The operator's side of the cluster in this process: what `control.Control` promises, except looking.

Checks what was asked for, tells the runtime, and waits until it has taken effect. `api.Cluster` is built on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

from llambo.cluster.catalogue import Catalogue, Entry
from llambo.cluster.control import SpawnProgress
from llambo.cluster.events import (
    DrainWanted,
    KillWanted,
    ModelAdded,
    ModelRemoved,
    NodeWanted,
    RestartWanted,
    ScaleWanted,
)
from llambo.cluster.launch.base import EMBEDDING, GENERATE, RERANKING, UNNAMED, Launcher, NodeRequest
from llambo.cluster.runtime import Runtime, node_name
from llambo.cluster.state import ATTACHED, EMBED, RERANK, Node
from llambo.cluster.state import GENERATE as ANSWERS
from llambo.cluster.world import World
from llambo.core.config import Settings
from llambo.core.errors import BadRequest, LlamboError, NameInUse, NoMemory, NotFound
from llambo.core.types import LoadOptions
from llambo.engine import memory

ATTACHED_TYPE = "attached"
_attempts = itertools.count(1)

NAMED = 10
"""So many nodes are named to somebody who named one that does not exist."""


@dataclass(frozen=True, slots=True)
class Attached:
    """A server that somebody else runs; the key stays in memory, `api_key_env` is where it came from."""

    url: str
    api_key: str
    api_key_env: str

    def __repr__(self) -> str:
        return f"Attached({self.url!r})"


class Operating:
    """Starts, ends and changes nodes, and waits for it."""

    def __init__(
        self,
        runtime: Runtime,
        catalogue: Catalogue,
        settings: Settings,
        *,
        local: Launcher,
        attach: Launcher,
        default_model: Callable[[], str],
    ) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._settings = settings
        self._local = local
        self._attach = attach
        self._default_model = default_model
        self.attached: dict[str, Attached] = {}  # by node

    @property
    def _world(self) -> World:
        return self._runtime.orchestrator.world

    def request_for(self, node: Node) -> NodeRequest:
        """What a launcher is told to start for a node."""
        name = node_name(node.id, node.epoch)
        if node.launcher == ATTACHED:
            server = self.attached[node.id]
            return NodeRequest(name, url=server.url, api_key=server.api_key, model=node.model)
        entry = self._catalogue.entries[node.model]
        if EMBED in node.kinds:  # one text at a time has the whole context
            return NodeRequest(name, entry.path, replace(node.options, slots=1), embedding=True, model=node.model)
        if RERANK in node.kinds:
            return NodeRequest(name, entry.path, replace(node.options, slots=1), reranking=True, model=node.model)
        return NodeRequest(name, entry.path, node.options, model=node.model)

    # --- models ---------------------------------------------------------------------------------------------------

    async def known(self, model: str, node_type: str = "", slots: int = 0, *, offline: bool = False) -> Entry:
        """The entry of a model that is known, by name or reference; makes it known where it is not.

        Raises: what finding a model raises, `NameInUse`, `BadRequest` for an unknown type.
        """
        present = self._catalogue.entries.get(model)
        if present is not None and (present.file is None or not node_type):
            return present
        ref = present.ref if present else model
        file = await self._catalogue.find(ref, offline=offline)
        kind = self._catalogue.type_for(file, node_type)
        name = present.name if present else self._catalogue.name_for(ref)
        entry = self._catalogue.entry(name, ref, file, LoadOptions(slots=slots), kind)
        known = self._catalogue.entries.get(name)
        if known is None or known.file is None:  # until now only an attached server had it
            self.add(entry)
        return entry

    def add(self, entry: Entry, *, pinned: bool = False) -> None:
        """Takes a model in, or changes what its next nodes get."""
        self._catalogue.entries[entry.name] = entry
        self._runtime.post(
            ModelAdded(entry.name, entry.options, entry.node_type, pinned=pinned, attached=entry.file is None)
        )

    async def make_default(self, model: str) -> None:
        """Has that model answer when none is named, with a node of its own. Raises: see `Control.spawn`."""
        entry = await self.known(model)
        if not self._world.models[entry.name].pools:
            await self.spawn(1, node_type="", model=entry.name, slots=0, progress=None)
        entries = self._catalogue.entries
        first = {entry.name: entries.pop(entry.name)}
        rest = dict(entries)
        entries.clear()
        entries.update(first | rest)

    async def remove(self, name: str) -> None:
        """Ends the model's nodes and forgets it; returns when its memory is free."""
        model = self._world.models.get(name)
        waiting = [self._runtime.until_gone(node.id) for node in model.nodes()] if model else []
        self._catalogue.entries.pop(name, None)
        self._runtime.post(ModelRemoved(name))
        await asyncio.gather(*waiting)

    async def check_room(self, entry: Entry, options: LoadOptions, count: int = 1) -> None:
        """Raises `NoMemory` when `count` more such nodes do not fit, with how many do."""
        most = self._settings.models.max_loaded
        loaded = {name for name, model in self._world.models.items() if model.pools and not model.attached}
        if most and len(loaded | {entry.name}) > most:
            raise NoMemory(f"{len(loaded)} models are loaded, and models.max_loaded allows {most}; free one first")
        request = NodeRequest("", entry.path, options)
        room = await self._local.room_for(request)
        if room is None or room >= count:
            return
        if count == 1 and entry.file is not None:
            await asyncio.to_thread(memory.check_fits, entry.file, ctx=options.ctx, slots=options.slots)
        raise NoMemory(
            f"{count:,} nodes for {entry.name} do not fit in the memory that is free; {room:,} would, or a smaller type"
        )

    # --- nodes ----------------------------------------------------------------------------------------------------

    async def spawn(
        self, count: int, *, node_type: str, model: str, slots: int, progress: SpawnProgress | None
    ) -> list[str]:
        """See `Control.spawn`; returns the nodes' ids."""
        self._runtime.check_open()
        if count < 1:
            raise BadRequest(f"the number of nodes to start must be at least 1, not {count}")
        self._check_most(len(self._world.nodes) + count)
        if slots < 0:
            raise BadRequest(f"the number of slots must be at least 1, not {slots}")
        if node_type:
            self._catalogue.type_named(node_type)
        before = set(self._catalogue.entries)
        entry = await self.known(model or self._default_model() or self._settings.models.default, node_type, slots)
        kind = node_type or entry.node_type
        options = self._catalogue.node_options(entry, kind, slots)
        try:
            await self.check_room(entry, options, count)
            return await self._start([NodeWanted(entry.name, kind, options)] * count, progress)
        except (LlamboError, asyncio.CancelledError):
            if entry.name not in before and not self._runtime.is_closed:
                await asyncio.shield(self.remove(entry.name))  # it was made known for these nodes alone
            raise

    async def start(self, wanted: NodeWanted) -> str:
        """Starts one node and returns its id once it serves."""
        return (await self._start([wanted], None))[0]

    async def attach(self, url: str, *, node_type: str, server: Attached) -> str:
        """See `Control.attach`; returns the node's id."""
        self._runtime.check_open()
        if node_type and node_type != ATTACHED_TYPE:
            self._catalogue.type_named(node_type)
        for node, other in self.attached.items():
            if _same_server(other.url, url):
                raise NameInUse(f"{url} is attached already as {node}; detach {node} first")
        probe = NodeRequest(f"attaching-{next(_attempts)}", url=url, api_key=server.api_key)
        handle = await self._attach.spawn(probe, timeout_s=self._settings.cluster.start_timeout)
        await self._attach.terminate(probe.name)
        name = handle.model or UNNAMED
        options = LoadOptions(ctx=handle.ctx, slots=handle.slots)
        self._add_attached(name, url, options)
        features = {GENERATE: ANSWERS, EMBEDDING: EMBED, RERANKING: RERANK}
        kinds = frozenset(kind for feature, kind in features.items() if feature in handle.features)
        wanted = NodeWanted(name, node_type or ATTACHED_TYPE, options, ATTACHED, kinds)
        return (await self._start([wanted], None, server))[0]

    async def restore_attached(
        self, url: str, *, node_type: str, server: Attached, node_id: str, model: str, options: LoadOptions
    ) -> None:
        """Takes a server in that was attached before a restart; where it does not answer it is dialled again later."""
        self._add_attached(model, url, options)
        wanted = NodeWanted(
            model, node_type or ATTACHED_TYPE, options, ATTACHED, frozenset({ANSWERS}), node_id, is_known=True
        )
        self._runtime.post(wanted)
        self.attached[node_id] = server
        with contextlib.suppress(LlamboError):
            await self._runtime.until_ready(node_id)

    def _add_attached(self, name: str, url: str, options: LoadOptions) -> None:
        if name not in self._catalogue.entries:
            self.add(Entry(name, url, None, options, options, ATTACHED_TYPE))

    async def scale(self, count: int, *, model: str, progress: SpawnProgress | None) -> str:
        """See `Control.scale`; returns the model's name."""
        self._runtime.check_open()
        least = self._settings.orchestrator.min_nodes
        if count < least:
            raise BadRequest(f"the cluster has at least {least} nodes (orchestrator.min_nodes), so {count} are too few")
        entry = await self.known(model or self._default_model() or self._settings.models.default)
        nodes = [
            node
            for node in self._world.models[entry.name].nodes()
            if ANSWERS in node.kinds and node.launcher != ATTACHED and not node.is_leaving
        ]
        more = count - len(nodes)
        if more > 0:
            self._check_most(len(self._world.nodes) + more)
            await self.check_room(entry, self._catalogue.node_options(entry, ""), more)
        before = set(self._world.nodes)
        self._runtime.post(ScaleWanted(entry.name, count))
        new = [node for node in self._world.nodes if node not in before]
        going = [
            self._runtime.until_gone(node.id)
            for node in nodes
            if node.is_leaving or node.state.value == "draining" or node.id not in self._world.nodes
        ]
        await asyncio.gather(*going, self._all_ready(new, progress))
        return entry.name

    async def drain(self, node_id: str) -> None:
        """See `Control.drain`."""
        gone = self._runtime.until_gone(self._node(node_id).id)
        self._runtime.post(DrainWanted(node_id))
        await gone

    async def detach(self, node_id: str) -> None:
        """See `Control.detach`."""
        if self._node(node_id).launcher != ATTACHED:
            raise BadRequest(f"node {node_id} is not attached but ours: drain {node_id} or kill {node_id}")
        await self.drain(node_id)

    async def kill(self, node_id: str) -> None:
        """See `Control.kill`."""
        gone = self._runtime.until_gone(self._node(node_id).id)
        self._runtime.post(KillWanted(node_id))
        await gone

    async def restart(self, node_id: str) -> None:
        """See `Control.restart`."""
        self._node(node_id)
        self._runtime.post(RestartWanted(node_id))
        await self._runtime.until_ready(node_id)

    def forget(self, node_id: str) -> None:
        """The node is gone, and with it what was known of its server."""
        self.attached.pop(node_id, None)

    def _node(self, node_id: str) -> Node:
        self._runtime.check_open()
        node = self._world.nodes.get(node_id)
        if node is None:
            known = list(self._world.nodes)
            some = ", ".join(known[:NAMED]) + (" …" if len(known) > NAMED else "")
            raise NotFound(f"no node is called {node_id!r}; there {f'are {some}' if some else 'is none'}")
        return node

    def _check_most(self, count: int) -> None:
        most = self._settings.orchestrator.max_nodes
        if most and count > most:
            raise BadRequest(f"the cluster has at most {most} nodes (orchestrator.max_nodes), so {count} are too many")

    async def _start(
        self, wanted: list[NodeWanted], progress: SpawnProgress | None, server: Attached | None = None
    ) -> list[str]:
        """Starts nodes; when one cannot start, or nobody waits any more, none of them stays."""
        before = set(self._world.nodes)
        for want in wanted:
            self._runtime.post(want)
        ids = [node_id for node_id in self._world.nodes if node_id not in before]
        if server is not None:
            self.attached |= dict.fromkeys(ids, server)
        await self._all_ready(ids, progress)
        return ids

    async def _all_ready(self, ids: list[str], progress: SpawnProgress | None) -> None:
        waiting = [self._runtime.until_ready(node_id) for node_id in ids]
        for waiter in waiting:
            waiter.add_done_callback(_note)
        try:
            for done, each in enumerate(asyncio.as_completed(waiting), start=1):
                await each
                if progress is not None:
                    progress(done, len(ids))
        except (LlamboError, asyncio.CancelledError):
            gone = [self._runtime.until_gone(node_id) for node_id in ids]
            for node_id in ids:
                self._runtime.post(KillWanted(node_id, "another one of its batch did not start"))
            for waiter in waiting:
                waiter.cancel()
            await asyncio.shield(asyncio.gather(*gone))
            raise


def _same_server(one: str, other: str) -> bool:
    return one.rstrip("/").removesuffix("/v1") == other.rstrip("/").removesuffix("/v1")


def _note(waiter: asyncio.Future[None]) -> None:
    """Looks at the outcome of one of many, so that those that nobody comes to are no fault."""
    if not waiter.cancelled():
        waiter.exception()
