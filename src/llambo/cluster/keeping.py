"""The checkpoint of a running cluster: taken, saved soon after a change, restored.

Owns when and where it is saved, what a restore makes of it, and what a restore could not bring back: that stays in the
checkpoints that follow. The file's format is `checkpoint`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Container, Iterator
from pathlib import Path
from typing import TypeVar

from llambo.cluster import checkpoint as files
from llambo.cluster.catalogue import Catalogue
from llambo.cluster.checkpoint import Checkpoint, ModelState, NodeState
from llambo.cluster.events import NodeWanted, NumbersTaken, StrategyChosen
from llambo.cluster.launch.base import UNNAMED
from llambo.cluster.operating import Attached, Operating
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import POOLING_TYPES
from llambo.cluster.state import NodeState as Life
from llambo.core import paths
from llambo.core.config import Settings
from llambo.core.errors import LlamboError, NotFound
from llambo.core.types import LoadOptions

log = logging.getLogger("llambo.cluster")

SAVE_AFTER_S = 0.2
"""Changes so close together are one checkpoint."""

_Part = TypeVar("_Part", ModelState, NodeState)


class Missing:
    """What a restore has not brought back, or not yet: it is still wanted."""

    def __init__(self) -> None:
        self._parts: dict[str, ModelState | NodeState] = {}
        self._places: dict[str, int] = {}  # of models, in the order in which they came
        self._reasons: dict[str, str] = {}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it could not be brought back, in sentences."""
        return tuple(self._reasons.values())

    def expect(self, state: Checkpoint) -> None:
        """All of it is wanted, and nothing is there."""
        self._places = {model.name: place for place, model in enumerate(state.models)}
        self._parts |= {_words(model): model for model in state.models}
        self._parts |= {_words(node): node for node in state.nodes}

    async def bring(self, part: _Part, work: Callable[[_Part], Awaitable[None]]) -> str:
        """Does the work that brings the part back; returns why that could not be done, or ""."""
        try:
            await work(part)
        except LlamboError as error:
            reason = self._reasons[_words(part)] = f"{_words(part)}: {error.message}"
            return reason
        self._drop(part)
        return ""

    def forget(self, model: str) -> bool:
        """Nobody wants that model any more, nor nodes for it; returns whether something of it was missing."""
        gone = [part for part in self._parts.values() if _model_of(part) == model]
        for part in gone:
            self._drop(part)
        return bool(gone)

    def prune(self, models: Container[str], nodes: Container[str]) -> None:
        """Drops what is there now, or is called like something that is, and nodes whose model was freed meanwhile."""
        for part in list(self._parts.values()):
            match part:
                case ModelState() if part.name in models:
                    self._drop(part)
                case NodeState() if part.id in nodes:
                    self._drop(part)
        wanted = {part.name for part in self._parts.values() if isinstance(part, ModelState)}
        for part in list(self._parts.values()):
            if isinstance(part, NodeState) and not part.url and part.model not in models and part.model not in wanted:
                self._drop(part)

    def models(self) -> Iterator[tuple[int, ModelState]]:
        """The missing models with their places among all."""
        for part in self._parts.values():
            if isinstance(part, ModelState):
                yield self._places.get(part.name, 0), part

    def nodes(self) -> Iterator[NodeState]:
        """The missing nodes."""
        for part in self._parts.values():
            if isinstance(part, NodeState):
                yield part

    def _drop(self, part: ModelState | NodeState) -> None:
        self._parts.pop(_words(part), None)
        self._reasons.pop(_words(part), None)


def _words(part: ModelState | NodeState) -> str:
    return f"model {part.name}" if isinstance(part, ModelState) else f"node {part.id}"


def _model_of(part: ModelState | NodeState) -> str:
    return part.name if isinstance(part, ModelState) else part.model


class Keeper:
    """Keeps the checkpoint at `path` (None: only on command, in the home)."""

    def __init__(
        self, runtime: Runtime, catalogue: Catalogue, operating: Operating, settings: Settings, path: Path | None
    ) -> None:
        self._runtime = runtime
        self._settings = settings
        self._catalogue = catalogue
        self._operating = operating
        self._path = path
        self._missing = Missing()
        self._timer: asyncio.TimerHandle | None = None
        self._saving: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()
        self._restores = 0  # in progress
        self._has_changed = False
        self._is_closed = False
        self.problem = ""
        """Why the last save failed."""

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the last save failed, and what a restore could not bring back, in sentences."""
        if not self._restores:
            self._prune()
        missing = (f"not restored: {reason}" for reason in self._missing.reasons)
        return (*((self.problem,) if self.problem else ()), *missing)

    async def close(self) -> None:
        """Saves what has changed, and nothing after that."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._saving is not None:
            await self._saving
        if self._has_changed:  # also while the last save was in progress
            await self._save_quietly()

    def save_soon(self) -> None:
        """Something has changed. While a restore is in progress nothing is saved: that would be half a cluster."""
        if self._path is None or self._is_closed:
            return
        self._has_changed = True
        if self._timer is None and self._saving is None and not self._restores:
            self._timer = asyncio.get_running_loop().call_later(SAVE_AFTER_S, self._begin)

    async def save(self, path: Path | None = None) -> Path:
        """See `Control.save_checkpoint`."""
        given, path = path, path or self._default_path()
        if given is not None and not path.parent.is_dir():
            raise LlamboError(f"cannot write the checkpoint {path}: there is no directory {path.parent}")
        async with self._turn:
            await asyncio.to_thread(files.write, path, self.checkpoint())
        if path == self._path:
            self.problem = ""
        return path

    def forget(self, model: str) -> bool:
        """A model was freed: what of it could not be restored is not wanted any more. Returns whether there was any."""
        is_known = self._missing.forget(model)
        if is_known:
            self.save_soon()
        return is_known

    def checkpoint(self) -> Checkpoint:
        """The cluster as it is wanted now, with what a restore could not bring back."""
        world = self._runtime.orchestrator.world
        models = [
            ModelState(entry.name, entry.ref, entry.asked, entry.node_type, world.models[entry.name].pinned)
            for entry in self._catalogue.entries.values()
            if entry.name in world.models and entry.file is not None
        ]
        nodes: list[NodeState] = []
        for node in world.nodes.values():
            if node.is_leaving or node.state is Life.DRAINING or node.type in POOLING_TYPES:
                continue
            server, slots = self._operating.attached.get(node.id), node.options.slots
            if server is None:
                nodes.append(NodeState(node.id, node.type, node.model, slots))
            else:
                url, variable, ctx = server.url, server.api_key_env, node.options.ctx
                nodes.append(NodeState(node.id, node.type, node.model, slots, url, variable, ctx))
        known, wanted = self._with_missing(models, nodes)
        settings = self._settings
        return Checkpoint(
            time.time(),
            world.balancer.strategy,
            known,
            wanted,
            settings.load_balancer.strategy,
            settings.models.default,
        )

    def _with_missing(
        self, models: list[ModelState], nodes: list[NodeState]
    ) -> tuple[tuple[ModelState, ...], tuple[NodeState, ...]]:
        if not self._restores:
            self._prune()
        world = self._runtime.orchestrator.world
        for place, model in self._missing.models():
            if model.name not in self._catalogue.entries:
                models.insert(place, model)  # the default one stays the first
        nodes += [node for node in self._missing.nodes() if node.id not in world.nodes]
        return tuple(models), tuple(sorted(nodes, key=lambda node: int(node.id[1:])))

    def _prune(self) -> None:
        self._missing.prune(self._catalogue.entries, self._runtime.orchestrator.world.nodes)

    async def restore(self, path: Path | None = None) -> list[str]:
        """See `Control.restore_checkpoint`. What cannot be brought back stays in the checkpoints that follow."""
        state = await asyncio.to_thread(files.read, path or self._default_path())
        self._missing.expect(state)
        self._restores += 1
        try:
            return await self._restore(state)
        finally:
            self._restores -= 1
            if self._has_changed:
                self.save_soon()

    async def _restore(self, state: Checkpoint) -> list[str]:
        problems: list[str] = []
        settings = self._settings
        self._runtime.post(NumbersTaken(max((int(node.id[1:]) for node in state.nodes), default=0)))
        if state.strategy and state.configured_strategy in ("", settings.load_balancer.strategy):
            try:
                self._runtime.post(StrategyChosen(state.strategy))
            except LlamboError as error:
                problems.append(error.message)
        for model in state.models:
            problems.append(await self._missing.bring(model, self._restore_model))
        nodes = (self._missing.bring(node, self._restore_node) for node in state.nodes)
        # With its exceptions returned it waits for all of them, also when it is cancelled.
        for result in await asyncio.gather(*nodes, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            problems.append(result)
        if state.configured_default not in ("", settings.models.default):
            try:
                await self._operating.make_default(settings.models.default)
            except LlamboError as error:
                problems.append(f"models.default is {settings.models.default} now: {error.message}")
        return [problem for problem in problems if problem]

    async def _restore_model(self, model: ModelState) -> None:
        file = await self._catalogue.find(model.ref, offline=True)
        entry = self._catalogue.entry(model.name, model.ref, file, model.options, model.node_type)
        self._operating.add(entry, pinned=model.pinned)

    async def _restore_node(self, node: NodeState) -> None:
        if node.id in self._runtime.orchestrator.world.nodes:
            return
        if node.url:
            key = os.environ.get(node.api_key_env, "") if node.api_key_env else ""
            await self._operating.restore_attached(
                node.url,
                node_type=node.type,
                server=Attached(node.url, key, node.api_key_env),
                node_id=node.id,
                model=node.model or UNNAMED,
                options=LoadOptions(ctx=node.ctx, slots=node.slots),
            )
            return
        entry = self._catalogue.entries.get(node.model)
        if entry is None:
            raise NotFound(f"its model {node.model} is not there")
        options = self._catalogue.node_options(entry, node.type, node.slots)
        await self._operating.start(NodeWanted(entry.name, node.type, options, id=node.id))

    def _begin(self) -> None:
        self._timer = None
        if self._restores:  # it began while we waited
            return
        self._saving = asyncio.create_task(self._save_quietly())
        self._saving.add_done_callback(self._saved)

    def _saved(self, _saving: asyncio.Task[None]) -> None:
        self._saving = None
        if self._has_changed:
            self.save_soon()

    async def _save_quietly(self) -> None:
        """Saves; a failure is a problem that `status` shows until a later save succeeds."""
        self._has_changed = False
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
