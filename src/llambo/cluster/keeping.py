"""The checkpoint of a running cluster: taken, saved soon after a change, restored.

Owns when and where it is saved, and what a restore makes of it. The file's format is `checkpoint`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path

from llambo.cluster import checkpoint as files
from llambo.cluster.catalogue import Catalogue
from llambo.cluster.checkpoint import Checkpoint, ModelState, NodeState
from llambo.cluster.events import NodeWanted, StrategyChosen
from llambo.cluster.operating import Attached, Operating
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import EMBEDDING_TYPE
from llambo.cluster.state import NodeState as Life
from llambo.core import paths
from llambo.core.errors import LlamboError, NotFound

log = logging.getLogger("llambo.cluster")

SAVE_AFTER_S = 0.2
"""Changes so close together are one checkpoint."""


class Keeper:
    """Keeps the checkpoint at `path` (None: only on command, in the home). `problem` says why the last save failed."""

    def __init__(self, runtime: Runtime, catalogue: Catalogue, operating: Operating, path: Path | None) -> None:
        self._runtime = runtime
        self._catalogue = catalogue
        self._operating = operating
        self._path = path
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._is_closed = False
        self.problem = ""

    async def close(self) -> None:
        """Saves what has changed, and nothing after that."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._begin()
        if self._saving is not None:
            await self._saving

    def save_soon(self) -> None:
        """Something has changed."""
        if self._path is not None and self._timer is None and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self._begin)

    async def save(self, path: Path | None = None) -> Path:
        """See `Control.save_checkpoint`."""
        path = path or self._default_path()
        async with self._turn:
            await asyncio.to_thread(files.write, path, self.checkpoint())
        return path

    def checkpoint(self) -> Checkpoint:
        """The cluster as it is wanted now."""
        world = self._runtime.orchestrator.world
        models = [
            ModelState(entry.name, entry.ref, entry.asked, entry.node_type, world.models[entry.name].pinned)
            for entry in self._catalogue.entries.values()
            if entry.name in world.models and entry.file is not None
        ]
        nodes: list[NodeState] = []
        for node in world.nodes.values():
            if node.is_leaving or node.state is Life.DRAINING or node.type == EMBEDDING_TYPE:
                continue
            server = self._operating.attached.get(node.id)
            url, variable = (server.url, server.api_key_env) if server else ("", "")
            nodes.append(NodeState(node.id, node.type, node.model, node.options.slots, url, variable))
        return Checkpoint(time.time(), world.balancer.strategy, tuple(models), tuple(nodes))

    async def restore(self, path: Path | None = None) -> list[str]:
        """See `Control.restore_checkpoint`."""
        state = await asyncio.to_thread(files.read, path or self._default_path())
        problems: list[str] = []
        if state.strategy:
            try:
                self._runtime.post(StrategyChosen(state.strategy))
            except LlamboError as error:
                problems.append(error.message)
        for model in state.models:
            try:
                await self._restore_model(model)
            except LlamboError as error:
                problems.append(f"model {model.name}: {error.message}")
        results = await asyncio.gather(*(self._restore_node(node) for node in state.nodes), return_exceptions=True)
        for node, result in zip(state.nodes, results, strict=True):
            if isinstance(result, LlamboError):
                problems.append(f"node {node.id}: {result.message}")
            elif isinstance(result, BaseException):
                raise result
        return problems

    async def _restore_model(self, model: ModelState) -> None:
        file = await self._catalogue.find(model.ref, offline=True)
        entry = self._catalogue.entry(model.name, model.ref, file, model.options, model.node_type)
        self._operating.add(entry, pinned=model.pinned)

    async def _restore_node(self, node: NodeState) -> None:
        if node.id in self._runtime.orchestrator.world.nodes:
            return
        if node.url:
            key = os.environ.get(node.api_key_env, "") if node.api_key_env else ""
            server = Attached(node.url, key, node.api_key_env)
            await self._operating.attach(node.url, node_type=node.type, server=server, node_id=node.id)
            return
        entry = self._catalogue.entries.get(node.model)
        if entry is None:
            raise NotFound(f"its model {node.model} is not there")
        options = self._catalogue.node_options(entry, node.type, node.slots)
        await self._operating.start(NodeWanted(entry.name, node.type, options, id=node.id))

    def _begin(self) -> None:
        self._timer = None
        if self._saving is not None and not self._saving.done():
            self._saving.add_done_callback(lambda _: self.save_soon())
            return
        self._saving = asyncio.create_task(self._save_quietly())

    async def _save_quietly(self) -> None:
        """Saves; a failure is a problem that `status` shows until a later save succeeds."""
        try:
            await self.save()
        except LlamboError as error:
            if not self.problem:
                log.error("%s", error.message)
            self.problem = error.message
        else:
            self.problem = ""

    def _default_path(self) -> Path:
        return self._path or paths.home() / files.FILE_NAME
