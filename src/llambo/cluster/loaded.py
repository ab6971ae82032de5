"""One loaded model: its node, the queue in front of it, and its life from loading to freed.

Owns the node through the launcher, and brings it back when it dies. Which models there are is `api`'s business.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from llambo.cluster.launch.base import Launcher, NodeExited, NodeHandle, NodeRequest
from llambo.cluster.slots import Slots
from llambo.cluster.upstream import StreamEnd, Upstream
from llambo.core.config import Cluster as ClusterConfig
from llambo.core.errors import LlamboError, NodeLost, NoModel, TimedOut
from llambo.core.types import Done, Event, GenerateRequest, LoadOptions, ModelInfo
from llambo.engine import memory
from llambo.engine.gguf import ModelFile

log = logging.getLogger("llambo.cluster.loaded")

MAX_RESTARTS = 3
RESTART_WINDOW_S = 60.0
"""A node that dies more than `MAX_RESTARTS` times within the window is in a crash loop and is given up."""

_EXIT_REPORT_S = 2.0  # a closed connection is seen before the exit report that explains it


@dataclass(slots=True)
class _Serving:
    """A node that answers, and the way to it."""

    handle: NodeHandle
    upstream: Upstream
    gone: asyncio.Future[str]  # the reason, once it has exited

    def tell_gone(self, reason: str) -> None:
        """Lets those who see their connection end know why; the first reason stands."""
        if not self.gone.done():
            self.gone.set_result(reason)


class LoadedModel:
    """A model under one name. `options` are complete (no zeros but `threads`); `new_name` gives unused node names."""

    def __init__(
        self,
        name: str,
        file: ModelFile,
        options: LoadOptions,
        *,
        launcher: Launcher,
        config: ClusterConfig,
        new_name: Callable[[], str],
    ) -> None:
        self.name = name
        self.file = file
        self.options = options
        self.state = "loading"
        self._launcher = launcher
        self._config = config
        self._new_name = new_name
        self._slots = Slots(options.slots, queue_limit=config.queue_limit, timeout_s=config.queue_timeout)
        self._serving: _Serving | None = None
        self._embedding: _Serving | None = None
        self._embedding_start = asyncio.Lock()
        self._spawning: dict[str, asyncio.Task[NodeHandle]] = {}  # by node name
        self._died_early: set[str] = set()
        self._revival: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()  # of this state; each state has its own
        self._restarts: list[float] = []

    @property
    def has_failed(self) -> bool:
        """Whether the model's node was given up."""
        return self.state.startswith("failed")

    async def start(self) -> None:
        """Starts the node; returns when it answers.

        Raises: what `Launcher.spawn` raises.
        """
        self._serving = await self._spawn(embedding=False)
        self._set_state("ready")

    async def stop(self) -> None:
        """Ends the model's nodes, those that are starting too; requests in flight get `NodeLost`, others `NoModel`."""
        self._set_state("freed")
        self._slots.close(NoModel(f"model {self.name} was freed"))
        starting = [*self._spawning.values(), *([self._revival] if self._revival else [])]
        for task in starting:
            task.cancel()
        await asyncio.gather(*starting, return_exceptions=True)
        nodes = [node for node in (self._serving, self._embedding) if node is not None]
        self._serving = self._embedding = None
        for node in nodes:
            node.tell_gone("its model was freed")
            await self._launcher.terminate(node.handle.name)
            await node.upstream.close()

    async def node_exited(self, event: NodeExited) -> None:
        """Takes note of a node's death, if it is one of ours, and brings the node back (not in a crash loop)."""
        if event.name in self._spawning:
            self._died_early.add(event.name)  # after it was ready, before `_spawn` went on
        elif self._embedding is not None and self._embedding.handle.name == event.name:
            dead, self._embedding = self._embedding, None  # the next request for an embedding starts another
            dead.tell_gone(event.reason)
            await dead.upstream.close()
        elif self._serving is not None and self._serving.handle.name == event.name:
            dead, self._serving = self._serving, None
            self._set_state("restarting")
            self._revival = asyncio.create_task(self._revive(event.reason), name=f"revive {self.name}")
            dead.tell_gone(event.reason)
            await dead.upstream.close()

    def info(self, *, is_default: bool) -> ModelInfo:
        """A snapshot."""
        handle = self._serving.handle if self._serving else None
        return ModelInfo(
            name=self.name,
            path=str(self.file.path),
            state=self.state,
            ctx=self.options.ctx,
            slots=self.options.slots,
            busy=self._slots.busy,
            node=handle.name if handle else "",
            pid=handle.pid if handle else 0,
            is_default=is_default,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See `Door.generate`."""
        arrived = time.perf_counter()
        first = 0.0
        async with self._slots.hold():
            node = await self._ready_node()
            try:
                prompt = await self._prompt(node, request)
                events = node.upstream.stream(prompt, request.sampling, logprobs=request.logprobs)
                try:
                    async for event in events:
                        if not isinstance(event, StreamEnd):
                            first = first or time.perf_counter()
                            yield event
                            continue
                        now = time.perf_counter()
                        yield Done(
                            finish_reason=event.finish_reason,
                            model=self.name,
                            node=node.handle.name,
                            tokens=event.tokens,
                            prompt_tokens=event.prompt_tokens,
                            cached_tokens=event.cached_tokens,
                            ttft_ms=((first or now) - arrived) * 1e3,
                            time_ms=(now - arrived) * 1e3,
                        )
                finally:
                    await events.aclose()
            except NodeLost as error:
                raise await self._explain_loss(node, error) from None

    async def ready(self) -> None:
        """Returns once the model answers; raises as `generate` does when it will not."""
        await self._ready_node()

    async def tokenize(self, text: str) -> list[int]:
        """See `Door.tokenize`."""
        node = await self._ready_node()
        return await node.upstream.tokenize(text)

    async def embed(self, text: str) -> list[float]:
        """See `Door.embed`; the first call starts a node for it, since an engine that pools decodes more slowly."""
        async with self._embedding_start:
            if self._embedding is None:
                await asyncio.to_thread(memory.check_fits, self.file, ctx=self.options.ctx, slots=1)
                self._embedding = await self._spawn(embedding=True)
            node = self._embedding
        try:
            return await node.upstream.embed(text)
        except NodeLost as error:
            raise await self._explain_loss(node, error) from None

    async def _prompt(self, node: _Serving, request: GenerateRequest) -> str:
        if request.raw_prompt is not None:
            return request.raw_prompt
        if self.file.has_chat_template:
            return await node.upstream.apply_template(request.messages)
        return "\n\n".join(message.content for message in request.messages)

    async def _spawn(self, *, embedding: bool) -> _Serving:
        """A node that answers; `stop` ends it while it starts.

        Raises: what `Launcher.spawn` raises, `NoModel` when the model is freed, `NodeLost` when the node died at once.
        """
        if self.state == "freed":
            raise NoModel(f"model {self.name} was freed")
        options = replace(self.options, slots=1) if embedding else self.options
        request = NodeRequest(self._new_name(), str(self.file.path), options, embedding=embedding)
        task = asyncio.create_task(self._launcher.spawn(request, timeout_s=self._config.start_timeout))
        self._spawning[request.name] = task
        try:
            handle = await task
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is not None and me.cancelling():
                raise
            raise NoModel(f"model {self.name} was freed") from None  # `stop` cancelled the spawn alone
        finally:
            del self._spawning[request.name]
        if request.name in self._died_early:
            raise NodeLost(f"node {request.name} of model {self.name} died as soon as it was ready")
        upstream = Upstream(handle.name, handle.socket_path)
        return _Serving(handle, upstream, asyncio.get_running_loop().create_future())

    async def _ready_node(self) -> _Serving:
        """The node that answers; waits while it is being restarted.

        Raises: `NoModel` once the model is freed, `NodeLost` when its node is given up, `TimedOut`.
        """
        try:
            async with asyncio.timeout(self._config.queue_timeout):
                while self.state in ("loading", "restarting"):
                    await self._changed.wait()
        except TimeoutError:
            raise TimedOut(f"model {self.name} was not ready within {self._config.queue_timeout:g} s") from None
        if self._serving is not None:
            return self._serving
        if self.state == "freed":
            raise NoModel(f"model {self.name} was freed")
        raise NodeLost(f"model {self.name} {self.state}; FREE it and LOAD it again")

    async def _explain_loss(self, node: _Serving, error: NodeLost) -> NodeLost:
        try:
            async with asyncio.timeout(_EXIT_REPORT_S):
                reason = await asyncio.shield(node.gone)
        except TimeoutError:
            return error
        return NodeLost(f"node {node.handle.name} of model {self.name} is gone: {reason}")

    async def _revive(self, reason: str) -> None:
        now = time.monotonic()
        self._restarts = [t for t in self._restarts if now - t < RESTART_WINDOW_S] + [now]
        if len(self._restarts) > MAX_RESTARTS:
            self._set_state(f"failed: its node died {len(self._restarts)} times in a minute ({reason})")
            return
        try:
            self._serving = await self._spawn(embedding=False)
        except LlamboError as error:
            self._set_state(f"failed: {error.message}")
            return
        log.info("model %s is back on node %s", self.name, self._serving.handle.name)
        self._set_state("ready")

    def _set_state(self, state: str) -> None:
        if self.state != "freed":  # nothing comes after that
            self.state = state
        self._changed.set()
        self._changed = asyncio.Event()


def node_names() -> Callable[[], str]:
    """Gives "n1", "n2", … ; a name is never used twice."""
    numbers = itertools.count(1)
    return lambda: f"n{next(numbers)}"
