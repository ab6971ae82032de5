"""The directory `models`: what the cluster knows, what is on this machine, and what is being fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

from llambo.core.errors import BadModel, BadRequest, NotFound
from llambo.core.types import ModelInfo
from llambo.engine.models import StoredModel
from llambo.namespace import ctls, render
from llambo.namespace.ctl_file import CtlFile, Refusals
from llambo.namespace.grammar import Call
from llambo.namespace.house import House
from llambo.ninep.files import StaticDirectory, TextFile
from llambo.ninep.tree import Directory, DirectoryHandle, Handle, Node


class ModelsDirectory(Directory):
    """`models`; with `may_control` there is `models/ctl`, and one in each model."""

    def __init__(self, house: House, refusals: Refusals, *, may_control: bool) -> None:
        super().__init__("models", 0o555)
        self._house = house
        self._refusals = refusals
        self._may_control = may_control
        self._ctl = CtlFile(ctls.MODELS, self._pull, refusals) if may_control else None
        self._directories: dict[str, ModelDirectory] = {}
        self._stored: dict[str, StoredModel] = {}

    async def lookup(self, name: str) -> Node:
        """The model of that name; the disk is looked at where the cluster does not know it. Raises: `NotFound`."""
        if name == "ctl" and self._ctl is not None:
            return self._ctl
        if name not in self._known():
            await self._look()
            if name not in self._stored:
                raise NotFound
        return self._directory(name)

    async def open(self, mode: int) -> Handle:  # type: ignore[override] # a Result, as of any node
        """Opens it for reading, with what is on the disk now."""
        await self._look()
        return DirectoryHandle(self)

    def entries(self) -> Iterable[Node]:
        """What there is."""
        names = dict.fromkeys((*self._known(), *self._stored))
        for name in self._directories.keys() - names.keys():
            del self._directories[name]
        models = [self._directory(name) for name in names]
        return models if self._ctl is None else [self._ctl, *models]

    def _known(self) -> set[str] | dict[str, None]:
        loaded = (model.name for model in self._house.answers.door.status().models)
        return dict.fromkeys((*loaded, *self._house.pulls.by_name))

    async def _look(self) -> None:
        self._stored = await self._house.pulls.stored()

    def _directory(self, name: str) -> ModelDirectory:
        if name not in self._directories:
            self._directories[name] = ModelDirectory(self._house, name, self._refusals, may_control=self._may_control)
        return self._directories[name]

    async def _pull(self, call: Call) -> str:
        return await self._house.pulls.pull(call.text("ref"))


class ModelDirectory(StaticDirectory):
    """`models/NAME`."""

    def __init__(self, house: House, name: str, refusals: Refusals, *, may_control: bool) -> None:
        files: list[Node] = [TextFile("status", self._status)]
        if may_control:
            files.insert(0, CtlFile(ctls.MODEL, self._perform, refusals))
        super().__init__(name, files)
        self._house = house

    def _info(self) -> ModelInfo | None:
        models = self._house.answers.door.status().models
        return next((model for model in models if model.name == self.name), None)

    async def _status(self) -> str:
        facts: dict[str, object] = {}
        info = self._info()
        if info is not None:
            facts = render.model_status(info)
        else:
            stored = (await self._house.pulls.stored()).get(self.name)
            if stored is not None:
                facts = {"state": stored.problem or "stored", "ref": stored.ref, "path": stored.path}
                facts |= {"size_bytes": stored.size_bytes, "quant": stored.quant, "architecture": stored.architecture}
        pull = self._house.pulls.by_name.get(self.name)
        if pull is not None:
            facts = {"state": pull.state} | facts | {"pull": pull.state, "pull_ref": pull.ref}
            facts |= {"done_bytes": pull.done, "total_bytes": pull.total}
        if not facts:
            raise NotFound
        return render.lines(facts)

    async def _perform(self, call: Call) -> None:
        house = self._house
        match call.command:
            case "load":
                await self._load()
            case "unload":
                await house.answers.door.free(self.name)
            case "pin":
                await house.control.pin(self.name, pinned=True)
            case "unpin":
                await house.control.pin(self.name, pinned=False)
            case command:
                raise AssertionError(f"the grammar let {command} through")

    async def _load(self) -> None:
        house = self._house
        info = self._info()
        if info is None:
            stored = (await house.pulls.stored()).get(self.name)
            if stored is None:
                raise BadRequest(f"there is no model {self.name} on this machine; write pull REF to models/ctl")
            await house.answers.door.load(stored.ref, name=self.name)
        elif info.state == "unloaded":
            await house.control.spawn(1, model=self.name)
        else:
            await self._until_ready()

    async def _until_ready(self) -> None:
        """Returns when a node serves the model. Raises: `NotFound`, `BadModel` when that failed."""
        async with aclosing(self._house.control.events()) as events:
            happened = asyncio.ensure_future(anext(events))
            try:
                while True:
                    info = self._info()
                    if info is None:
                        raise NotFound
                    if info.state == "ready":
                        return
                    if info.state.startswith("failed"):
                        raise BadModel(f"model {self.name} {info.state}; nodes/ID/ctl restart tries again")
                    await happened
                    happened = asyncio.ensure_future(anext(events))
            finally:
                happened.cancel()
                await asyncio.wait([happened])
