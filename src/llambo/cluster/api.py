"""The cluster in this process: the real door. One node per loaded model, on this machine.

Owns which models there are, their order (the first loaded is the default) and the counters. How one model lives is
`loaded`'s business, how a process starts the launcher's.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from llambo.cluster.door import DoorStatus
from llambo.cluster.launch.base import Launcher, NodeExited
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.loaded import LoadedModel, node_names
from llambo.core import config, paths
from llambo.core.errors import Cancelled, LlamboError, NameInUse, NoModel, NotFound
from llambo.core.threads import run_abandonable
from llambo.core.types import Counters, Done, Event, GenerateRequest, LoadOptions, ModelInfo
from llambo.engine import gguf, llama, memory, models, references
from llambo.engine.download import Progress

log = logging.getLogger("llambo.cluster")


@dataclass(slots=True)
class _Loading:
    """A load in progress: what is wanted, the work, and how many wait for it."""

    wanted: tuple[str, LoadOptions]
    task: asyncio.Task[ModelInfo]
    waiters: int = 0
    model: LoadedModel | None = None  # once its node is being started
    is_given_up: bool = False

    def give_up(self) -> None:
        """Ends the work, if it has not ended by itself."""
        self.is_given_up = True
        self.task.cancel()


class Cluster:
    """A private cluster on this machine: `async with Cluster() as cluster: await cluster.load("built-in")`.

    `settings` are the effective ones unless given. Log files of nodes go to `log_dir`, by default nowhere that lasts.
    `progress` is told (bytes done, bytes in all) from another thread while a model is fetched.
    """

    def __init__(
        self,
        settings: config.Settings | None = None,
        *,
        log_dir: Path | None = None,
        launcher: Launcher | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._settings = settings or config.load().settings
        self._launcher: Launcher = launcher or LocalLauncher(paths.runtime_dir(), log_dir=log_dir)
        self._progress = progress
        self._models: dict[str, LoadedModel] = {}  # ready ones and those being brought back, in order of loading
        self._loading: dict[str, _Loading] = {}
        self._new_node_name = node_names()
        self._counters = Counters()
        self._started = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every node and leaves nothing behind; requests in flight end with `NodeLost`."""
        loads = [loading.task for loading in self._loading.values()]
        for task in (*loads, *([self._watcher] if self._watcher else [])):
            task.cancel()
        await asyncio.gather(*loads, *self._tasks, return_exceptions=True)
        await asyncio.gather(*(model.stop() for model in self._models.values()))
        self._models.clear()
        await self._launcher.close()

    async def load(self, ref: str, *, name: str = "", options: LoadOptions | None = None) -> ModelInfo:
        """See `Door.load`. Two equal loads at once are one; a name taken by another model is `NameInUse`.

        A load for which nobody waits any more is given up.
        """
        options = options or LoadOptions()
        name = name or references.default_name(references.parse(ref))
        loading = self._loading.get(name)
        while loading is not None and loading.is_given_up:
            await asyncio.wait([loading.task])
            self._load_ended(name, loading)
            loading = self._loading.get(name)
        if loading is None:
            task = asyncio.create_task(self._load(ref, name, options), name=f"load {name}")
            loading = mine = self._loading[name] = _Loading((ref, options), task)
            task.add_done_callback(lambda _: self._load_ended(name, mine))
        elif loading.wanted != (ref, options):
            raise NameInUse(f"another model is being loaded as {name!r}; choose a name with as=NAME")
        loading.waiters += 1
        try:
            return await asyncio.shield(loading.task)
        except asyncio.CancelledError:
            if loading.task.cancelled():
                raise NoModel(f"model {name} was freed before it was loaded") from None
            raise
        finally:
            loading.waiters -= 1
            if not loading.waiters:
                loading.give_up()

    async def free(self, name: str = "") -> None:
        """See `Door.free`; a model that is still being loaded is given up."""
        if loading := self._loading.get(name):
            loading.give_up()
            await asyncio.wait([loading.task])
            if name not in self._models:
                return
        model = self._pick(name)
        del self._models[model.name]
        await self._finish(model.stop())  # to its end, even if nobody waits for it
        log.info("freed model %s", model.name)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See `Door.generate`."""
        self._count(requests=1)
        try:
            async with aclosing(self._pick(request.model).generate(request)) as events:
                async for event in events:
                    if isinstance(event, Done):
                        self._count(tokens=event.tokens)
                    yield event
        except LlamboError:
            self._count(errors=1)
            raise

    async def tokenize(self, text: str, *, model: str = "") -> list[int]:
        """See `Door.tokenize`."""
        return await self._pick(model).tokenize(text)

    async def embed(self, text: str, *, model: str = "") -> list[float]:
        """See `Door.embed`."""
        return await self._pick(model).embed(text)

    def status(self) -> DoorStatus:
        """See `Door.status`."""
        infos = tuple(model.info(is_default=i == 0) for i, model in enumerate(self._models.values()))
        return DoorStatus(infos, self._counters, time.monotonic() - self._started)

    async def _load(self, ref: str, name: str, options: LoadOptions) -> ModelInfo:
        path = await self._resolve(ref)
        file = await asyncio.to_thread(gguf.read, path)
        options = self._complete(options, file)
        if present := self._models.get(name):
            if (present.file.path, present.options) != (file.path, options):
                raise NameInUse(f"{name!r} is {present.file.path} already; FREE {name} first, or load it as=NAME")
            if not present.has_failed:
                await present.ready()
                return self._info(present)
            del self._models[name]
            await self._finish(present.stop())
        await asyncio.to_thread(memory.check_fits, file, ctx=options.ctx, slots=options.slots)
        self._watch()
        model = LoadedModel(
            name,
            file,
            options,
            launcher=self._launcher,
            config=self._settings.cluster,
            new_name=self._new_node_name,
        )
        self._loading[name].model = model
        await model.start()
        self._models[name] = model
        log.info("loaded model %s from %s", name, file.path)
        return self._info(model)

    async def _finish(self, work: Coroutine[None, None, None]) -> None:
        """Awaits `work`, which goes on to its end when the caller is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.shield(task)

    async def _resolve(self, ref: str) -> Path:
        """The model's file, fetched where that is needed; cancelling it ends the download, which keeps its part."""
        given_up = threading.Event()

        def progress(done: int, total: int) -> None:
            if given_up.is_set():
                raise Cancelled("the download was given up")
            if self._progress is not None:
                self._progress(done, total)

        offline = self._settings.models.offline
        try:
            return await run_abandonable(
                lambda: models.resolve(ref, home=paths.home(), offline=offline, progress=progress), name=f"fetch {ref}"
            )
        except asyncio.CancelledError:
            given_up.set()  # a thread cannot be cancelled; it ends at its next piece
            raise

    def _load_ended(self, name: str, loading: _Loading) -> None:
        if self._loading.get(name) is loading:
            del self._loading[name]
        # Asked for here too: all who waited may have gone away meanwhile.
        if not loading.task.cancelled() and (error := loading.task.exception()) is not None:
            log.warning("model %s was not loaded: %s", name, error)

    def _complete(self, options: LoadOptions, file: gguf.ModelFile) -> LoadOptions:
        """The options with the configuration in place of what was left open."""
        defaults = self._settings.models
        return replace(
            options,
            ctx=options.ctx or min(defaults.ctx, file.ctx_train or defaults.ctx),
            slots=options.slots or defaults.slots,
            threads=options.threads or defaults.threads or llama.threads_for(file.tensor_bytes),
            gpu_layers=defaults.gpu_layers if options.gpu_layers < 0 else options.gpu_layers,
        )

    def _pick(self, name: str) -> LoadedModel:
        if not self._models:
            raise NoModel("no model is loaded; load one with LOAD PATH")
        if not name:
            return next(iter(self._models.values()))
        if name not in self._models:
            raise NotFound(f"no model is called {name!r}; loaded are {', '.join(self._models)}")
        return self._models[name]

    def _info(self, model: LoadedModel) -> ModelInfo:
        return model.info(is_default=next(iter(self._models.values())) is model)

    def _count(self, *, requests: int = 0, tokens: int = 0, errors: int = 0) -> None:
        old = self._counters
        self._counters = Counters(old.requests + requests, old.tokens + tokens, old.errors + errors)

    def _watch(self) -> None:
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch_nodes(), name="watch nodes")

    async def _watch_nodes(self) -> None:
        async for event in self._launcher.watch():
            task = asyncio.create_task(self._tell_models(event), name=f"exit of {event.name}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _tell_models(self, event: NodeExited) -> None:
        starting = [loading.model for loading in self._loading.values() if loading.model is not None]
        for model in (*self._models.values(), *starting):
            await model.node_exited(event)
