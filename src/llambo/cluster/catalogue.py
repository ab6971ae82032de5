"""Which models the cluster may serve, and what a node of each gets: references become files, types become options.

Owns the files' facts and the names. Reads and fetches files; starts nothing.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from llambo.core import paths
from llambo.core.config import NodeType, Settings
from llambo.core.errors import BadRequest, Cancelled, NameInUse, NoMemory
from llambo.core.sections import PRESETS
from llambo.core.threads import run_abandonable
from llambo.core.types import LoadOptions
from llambo.engine import gguf, llama, memory, models, references
from llambo.engine.download import Progress
from llambo.engine.gguf import ModelFile
from llambo.engine.policy import threads_of_type

CUSTOM = "custom"
"""The type of nodes whose options were given one by one, as LOAD does."""
SMALLEST_BY_DEFAULT = "medium"


@dataclass(frozen=True, slots=True)
class Entry:
    """A model under its name. `asked` are the options as they were given, `options` complete; `file` None: attached."""

    name: str
    ref: str
    file: ModelFile | None
    asked: LoadOptions
    options: LoadOptions
    node_type: str

    @property
    def path(self) -> str:
        """The file's path, or where an attached model is."""
        return str(self.file.path) if self.file else self.ref


class Catalogue:
    """The models by name, in the order in which they came: the first is the default one."""

    def __init__(self, settings: Settings, progress: Progress | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self.entries: dict[str, Entry] = {}

    async def find(self, ref: str, *, offline: bool = False) -> ModelFile:
        """The facts of the file that `ref` means; fetches it where that is needed and allowed.

        Cancelling it ends the download, which keeps its part. Raises: `BadModel`, `DownloadFailed`.
        """
        path = await self._resolve(ref, offline=offline or self._settings.models.offline)
        return await asyncio.to_thread(gguf.read, path)

    def name_for(self, ref: str, name: str = "") -> str:
        """The name under which a model is known: the given one, or the reference's own."""
        return name or references.default_name(references.parse(ref))

    def entry(self, name: str, ref: str, file: ModelFile, options: LoadOptions, node_type: str = "") -> Entry:
        """The entry for a model, not yet taken in: options completed, by the type where one is given.

        Raises: `NameInUse` when another file has the name.
        """
        present = self.entries.get(name)
        if present is not None and present.file is not None and present.file.path != file.path:
            raise NameInUse(f"{name!r} is {present.path} already; FREE {name} first, or load it as=NAME")
        if node_type and node_type != CUSTOM:
            return Entry(name, ref, file, options, self.options_of_type(node_type, file, options.slots), node_type)
        return Entry(name, ref, file, options, self.complete(options, file), CUSTOM)

    def complete(self, options: LoadOptions, file: ModelFile) -> LoadOptions:
        """The options with the configuration in place of what was left open."""
        defaults = self._settings.models
        asked = 0 if options.threads_by_default else options.threads
        threads = asked or defaults.threads
        return replace(
            options,
            ctx=options.ctx or min(defaults.ctx, file.ctx_train or defaults.ctx),
            slots=options.slots or defaults.slots,
            threads=threads or llama.threads_for(file.tensor_bytes),
            gpu_layers=defaults.gpu_layers if options.gpu_layers < 0 else options.gpu_layers,
            threads_by_default=not threads,
        )

    def type_named(self, name: str) -> NodeType:
        """The node type of that name. Raises: `BadRequest` naming the types there are."""
        types = self._settings.cluster.node_types
        if name not in types:
            raise BadRequest(f"no node type is called {name!r}; there are {', '.join(types)}")
        return types[name]

    def type_for(self, file: ModelFile, asked: str = "") -> str:
        """The type a node for this model gets: the one asked for, the configured one, or the smallest that holds it.

        Raises: `BadRequest` for an unknown type, `NoMemory` when the model needs more than the asked type has.
        """
        types = self._settings.cluster.node_types
        asked = asked or self._settings.cluster.default_type
        if asked:
            self._check_holds(asked, file)
            return asked
        by_size = sorted(types, key=lambda name: types[name].memory)
        ordinary = [name for name in by_size if types[name].memory >= types[SMALLEST_BY_DEFAULT].memory]
        return next((name for name in ordinary if self._need(name, file) <= types[name].memory), by_size[-1])

    def options_of_type(self, name: str, file: ModelFile, slots: int = 0) -> LoadOptions:
        """What a node of that type gets for this model; `slots` 0 is what the type says."""
        preset = self.type_named(name)
        shipped = PRESETS.get(name, NodeType()).threads
        few = llama.threads_for(file.tensor_bytes)
        threads, by_default = threads_of_type(preset.threads, shipped=shipped, few=few)
        return LoadOptions(
            ctx=min(preset.ctx, file.ctx_train or preset.ctx),
            slots=slots or preset.slots,
            threads=threads,
            gpu_layers=self._settings.models.gpu_layers,
            threads_by_default=by_default,
        )

    def node_options(self, entry: Entry, node_type: str, slots: int = 0) -> LoadOptions:
        """What a node of `node_type` gets for a model of ours.

        Raises: `BadRequest` for a model that only attached servers have.
        """
        if entry.file is None:
            raise BadRequest(f"model {entry.name} is served by an attached server; attach another one for more nodes")
        if node_type in self._settings.cluster.node_types:
            return self.options_of_type(node_type, entry.file, slots)
        return replace(entry.options, slots=slots or entry.options.slots)

    def _check_holds(self, name: str, file: ModelFile) -> None:
        need, preset = self._need(name, file), self.type_named(name)
        if need > preset.memory:
            types = self._settings.cluster.node_types
            larger = [other for other in types if self._need(other, file) <= types[other].memory]
            advice = f"take {' or '.join(larger)}" if larger else "add a larger type to cluster.node_types"
            raise NoMemory(
                f"{file.path.name} needs {need / 2**20:.0f} MiB and a {name} node has {preset.memory / 2**20:.0f} MiB;"
                f" {advice}"
            )

    def _need(self, name: str, file: ModelFile) -> int:
        options = self.options_of_type(name, file)
        return memory.needed(file, ctx=options.ctx, slots=options.slots).total

    async def _resolve(self, ref: str, *, offline: bool) -> Path:
        given_up = threading.Event()

        def progress(done: int, total: int) -> None:
            if given_up.is_set():
                raise Cancelled("the download was given up")
            if self._progress is not None:
                self._progress(done, total)

        try:
            return await run_abandonable(
                lambda: models.resolve(ref, home=paths.home(), offline=offline, progress=progress), name=f"fetch {ref}"
            )
        except asyncio.CancelledError:
            given_up.set()  # a thread cannot be cancelled; it ends at its next piece
            raise
