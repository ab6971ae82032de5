"""The cluster in this process: the real door, for interfaces (`Door`) and for operators (`Control`).

Puts the parts together and says what each call means. Which node answers is the orchestrator's decision, how that is
done the runtime's, what a request goes through `answering`'s, how nodes come and go `operating`'s.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from llambo.cluster import answering, configured, fusing, fusion_plan, survey
from llambo.cluster.catalogue import Catalogue, Entry
from llambo.cluster.checkpoint import to_dict
from llambo.cluster.control import BalancerStats, ClusterEvent, ClusterStatus, NodeInfo, SpawnProgress
from llambo.cluster.door import DoorStatus
from llambo.cluster.events import ModelPinned, StrategyChosen
from llambo.cluster.eviction import Eviction
from llambo.cluster.keeping import Keeper
from llambo.cluster.launch.attach import AttachLauncher
from llambo.cluster.launch.base import Launcher, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.loading import Loads
from llambo.cluster.metrics import Metrics
from llambo.cluster.node_metrics import node_metrics
from llambo.cluster.operating import Attached, Operating
from llambo.cluster.relay import RelayReply, RelayRequest
from llambo.cluster.relay_counts import Counts
from llambo.cluster.relaying import Relaying
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import ATTACHED, LOCAL, RERANK, Node
from llambo.cluster.upstream_llama import LlamaUpstream
from llambo.cluster.world import World, serves
from llambo.core import config, paths
from llambo.core.errors import BadRequest, LlamboError, NoModel, NoQuorum, NotFound
from llambo.core.fusion import FusionRequest
from llambo.core.types import Counters, Done, Event, GenerateRequest, LoadOptions, ModelInfo
from llambo.engine.download import Progress
from llambo.engine.policy import EngineHome, EnginePolicy

log = logging.getLogger("llambo.cluster")


class Cluster:
    """A cluster of this process: `async with Cluster() as cluster: await cluster.load("built-in")`.

    `settings` are the effective ones unless given. Log files of nodes go to `log_dir`, by default nowhere that lasts.
    `progress` is told (bytes done, bytes in all) from another thread while a model is fetched. `state_path` is where
    the checkpoint is kept (None: nowhere). With `on_demand` a request loads a model of this machine that it names, and
    models that nobody uses make room for it.
    """

    def __init__(
        self,
        settings: config.Settings | None = None,
        *,
        log_dir: Path | None = None,
        launcher: Launcher | None = None,
        progress: Progress | None = None,
        state_path: Path | None = None,
        on_demand: bool = False,
    ) -> None:
        self._settings = settings = settings or config.load().settings
        engines = EngineHome(paths.home(), EnginePolicy.of(settings.engine))
        local = launcher or LocalLauncher(paths.runtime_dir(), log_dir=log_dir, engines=engines)
        attach = AttachLauncher()
        self._metrics = Metrics(lambda: survey.metrics_snapshot(self._world, self.status().models))
        self._catalogue = Catalogue(settings, progress)
        self._runtime = Runtime(
            configured.policy(settings),
            {LOCAL: local, ATTACHED: attach},
            limits=configured.limits(settings),
            request_for=self._request_for,
            changed=self._changed,
            observer=self._metrics,
            heard=self._heard,
            make_room=self._eviction(local) if on_demand else None,
        )
        self._operating = Operating(
            self._runtime, self._catalogue, settings, local=local, attach=attach, default_model=self._default_name
        )
        self._on_demand = on_demand
        self._keeper = Keeper(self._runtime, self._catalogue, self._operating, settings, state_path)
        self._loads = Loads(self._runtime, self._catalogue, self._operating)
        self._meter = survey.Meter()
        self._started = time.monotonic()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every node and leaves nothing behind but the checkpoint; requests in flight end with `NodeLost`."""
        await self._keeper.close()  # the nodes that end now are still wanted after a restart
        await self._loads.close()
        await self._runtime.close()

    # --- the door -------------------------------------------------------------------------------------------------

    async def load(self, ref: str, *, name: str = "", options: LoadOptions | None = None) -> ModelInfo:
        """See `Door.load`. Two equal loads at once are one; a name taken by another model is `NameInUse`.

        A load for which nobody waits any more is given up.
        """
        name = self._catalogue.name_for(ref, name)
        await self._loads.load(ref, name, options or LoadOptions())
        return self._info(self._pick(name))

    async def free(self, name: str = "") -> None:
        """See `Door.free`; a model that is still being loaded is given up."""
        if name in self._loads.in_progress:
            await self._loads.give_up(name)
            if name not in self._catalogue.entries:
                return
        if self._keeper.forget(name) and name not in self._catalogue.entries:
            return
        await self._loads.remove(self._pick(name).name)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """See `Door.generate`."""
        started = time.perf_counter()
        outcome, done = "cancelled", None
        try:
            name = (await self._wanted(request.model)).name
            if request.fusion is None:
                answer = answering.Answering(self._runtime, request, name, self._meter.add).events()
            else:
                answer = self._fuse(request, self._plan(request, request.fusion, name))
            async with aclosing(answer) as events:
                async for event in events:
                    if isinstance(event, Done):
                        outcome, done = "done", event
                    yield event
        except LlamboError:
            outcome = "error"
            raise
        finally:
            self._metrics.request_ended(
                request.interface,
                outcome,
                time.perf_counter() - started,
                ttft_s=done.ttft_ms / 1e3 if done else None,
                tokens=done.tokens if done else 0,
                prompt_tokens=done.prompt_tokens if done else 0,
                cached_tokens=done.cached_tokens if done else 0,
                comes_at_once=bool(done and done.fusion and done.fusion.strategy != "token-average"),
            )

    async def _fuse(self, request: GenerateRequest, plan: fusion_plan.Plan) -> AsyncGenerator[Event, None]:
        """The answer of several; how far they agree shows in the metrics, also where they do not enough."""
        fused = fusing.of(self._runtime, request, plan, self._meter.add)
        is_decided = False
        try:
            async with aclosing(fused.events()) as events:
                async for event in events:
                    is_decided = is_decided or isinstance(event, Done)
                    yield event
        except NoQuorum:
            is_decided = True
            raise
        finally:
            if is_decided:
                self._metrics.fused(plan.strategy, fused.agreement, fused.other_tokens)

    @asynccontextmanager
    async def relay(self, request: RelayRequest) -> AsyncIterator[RelayReply]:
        """See `Relays.relay`. Every request but one that only looks shows in the metrics, once."""
        started = time.perf_counter()
        outcome = "cancelled"
        relaying: Relaying | None = None
        try:
            entry = await self._wanted(request.model)
            name = entry.name
            if request.kind == "rerank":
                self._check_ranks(entry)
            relaying = Relaying(self._runtime, request, name, self._meter.add)
            async with relaying.running() as reply:
                yield reply
        except LlamboError:
            outcome = "error"
            raise
        finally:
            if request.kind != "look":
                counts = relaying.counts if relaying is not None else Counts()
                self._metrics.request_ended(
                    request.interface,
                    relaying.outcome if relaying is not None else outcome,
                    time.perf_counter() - started,
                    ttft_s=relaying.ttft_s if relaying is not None else None,
                    tokens=counts.tokens,
                    prompt_tokens=counts.prompt_tokens,
                    cached_tokens=counts.cached_tokens,
                )

    async def tokenize(self, text: str, *, model: str = "") -> list[int]:
        """See `Door.tokenize`."""
        return await answering.tokenize(self._runtime, text, (await self._wanted(model)).name)

    async def embed(self, text: str, *, model: str = "") -> list[float]:
        """See `Door.embed`; the first call starts a node for it, since an engine that pools decodes more slowly."""
        return await answering.embed(self._runtime, text, (await self._wanted(model)).name)

    def status(self) -> DoorStatus:
        """See `Door.status`."""
        totals = self._world.totals
        counters = Counters(totals.requests, self._meter.total, totals.failed)
        return DoorStatus(self._models(), counters, time.monotonic() - self._started)

    # --- the operator's side --------------------------------------------------------------------------------------

    async def spawn(
        self,
        count: int,
        *,
        node_type: str = "",
        model: str = "",
        slots: int = 0,
        progress: SpawnProgress | None = None,
    ) -> list[NodeInfo]:
        """See `Control.spawn`."""
        ids = await self._operating.spawn(count, node_type=node_type, model=model, slots=slots, progress=progress)
        return [node for node in await self.nodes() if node.id in ids]

    async def attach(self, url: str, *, node_type: str = "", api_key: str = "", api_key_env: str = "") -> NodeInfo:
        """See `Control.attach`."""
        server = Attached(url, api_key, api_key_env)
        return self._node_infos([await self._operating.attach(url, node_type=node_type, server=server)])[0]

    async def detach(self, node_id: str) -> None:
        """See `Control.detach`."""
        await self._operating.detach(node_id)

    async def scale(self, count: int, *, model: str = "", progress: SpawnProgress | None = None) -> list[NodeInfo]:
        """See `Control.scale`."""
        name = await self._operating.scale(count, model=model, progress=progress)
        return [node for node in await self.nodes() if node.model == name]

    async def drain(self, node_id: str) -> None:
        """See `Control.drain`."""
        await self._operating.drain(node_id)

    async def kill(self, node_id: str) -> None:
        """See `Control.kill`."""
        await self._operating.kill(node_id)

    async def restart(self, node_id: str) -> NodeInfo:
        """See `Control.restart`."""
        await self._operating.restart(node_id)
        return self._node_infos([node_id])[0]

    async def pin(self, model: str, *, pinned: bool) -> None:
        """See `Control.pin`."""
        self._runtime.post(ModelPinned(self._pick(model).name, pinned))

    def set_strategy(self, strategy: str) -> None:
        """See `Control.set_strategy`."""
        self._runtime.post(StrategyChosen(strategy))

    def balancer_stats(self) -> BalancerStats:
        """See `Control.balancer_stats`."""
        return survey.balancer_stats(self._world)

    async def nodes(self) -> list[NodeInfo]:
        """See `Control.nodes`."""
        pids = {info.id: info.pid for info in self._node_infos(list(self._world.nodes)) if info.pid}
        memory = await asyncio.to_thread(survey.memory_of, list(pids.values()))
        return self._node_infos(list(self._world.nodes), {node: memory.get(pid, (0, 0)) for node, pid in pids.items()})

    def node_ids(self) -> Mapping[str, object]:
        """Every node by its id, live: what it maps to is one object for as long as the node lives."""
        return self._world.nodes

    def node_info(self, node_id: str) -> NodeInfo:
        """One node, with nothing measured. Raises: `KeyError`."""
        found = self._node_infos([node_id])
        if not found:
            raise KeyError(node_id)
        return found[0]

    def cluster_status(self) -> ClusterStatus:
        """See `Control.cluster_status`."""
        problems = self._keeper.problems
        uptime = time.monotonic() - self._started
        return survey.cluster_status(self._world, self._models(), self._meter, uptime_s=uptime, problems=problems)

    async def events(self) -> AsyncGenerator[ClusterEvent, None]:
        """See `Control.events`."""
        async with aclosing(self._runtime.events()) as events:
            async for event in events:
                yield event

    def metrics(self) -> str:
        """See `Control.metrics`."""
        return self._metrics.render()

    async def node_metrics(self) -> str:
        """See `Control.node_metrics`."""
        places = (self._runtime.place_of(node.id) for node in list(self._world.nodes.values()) if serves(node))
        return await node_metrics(
            (place.node, place.handle) for place in places if place and isinstance(place.upstream, LlamaUpstream)
        )

    def checkpoint(self) -> dict[str, Any]:
        """See `Control.checkpoint`."""
        return to_dict(self._keeper.checkpoint())

    async def save_checkpoint(self, path: Path | None = None) -> Path:
        """See `Control.save_checkpoint`."""
        return await self._keeper.save(path)

    async def restore_checkpoint(self, path: Path | None = None) -> list[str]:
        """See `Control.restore_checkpoint`."""
        return await self._keeper.restore(path)

    # --- models ---------------------------------------------------------------------------------------------------

    @property
    def _world(self) -> World:
        return self._runtime.orchestrator.world

    async def _wanted(self, name: str) -> Entry:
        """The model that a request means; one of this machine that is not known yet is made known.

        Its node is started by the orchestrator, since the request waits for one. Raises: `NoModel`, `NotFound`.
        """
        if not self._on_demand or name in self._catalogue.entries or (not name and self._catalogue.entries):
            return self._pick(name)
        try:
            entry = await self._operating.known(name or self._settings.models.default, offline=True)
        except LlamboError as error:
            known = ", ".join(self._catalogue.entries) or "none"
            raise NotFound(
                f"no model is called {name!r}; there are {known}, and here is none: {error.message}"
            ) from None
        log.info("model %s was asked for", entry.name)
        return entry

    def _plan(self, request: GenerateRequest, wanted: FusionRequest, first: str) -> fusion_plan.Plan:
        """How a question is asked of several: a model that it names is asked alone, else every one that can answer.

        The first one is waited for, unless the type of node that is wanted is others' alone. Raises: `BadRequest`.
        """
        models = [first]
        if not request.model:
            ready = survey.answering_models(self._world, request.node_type)
            others = [name for name in self._catalogue.entries if name in ready and name != first]
            is_in = first in ready or not request.node_type or not others
            models = [first, *others] if is_in else others
        types = self._settings.cluster.node_types
        weights = {name: node_type.weight for name, node_type in types.items()}
        return fusion_plan.plan(wanted, models, self._settings.cognition, weights)

    def _pick(self, name: str) -> Entry:
        entries = self._catalogue.entries
        if not entries:
            raise NoModel("no model is loaded; load one with LOAD PATH")
        if not name:
            return next(iter(entries.values()))
        if name not in entries:
            raise NotFound(f"no model is called {name!r}; loaded are {', '.join(entries)}")
        return entries[name]

    def _check_ranks(self, entry: Entry) -> None:
        """Raises `BadRequest` for a model that cannot rank: llama.cpp would give numbers that mean nothing."""
        if entry.file is None or entry.file.pooling_type == "rank":
            return
        if not any(RERANK in pool.kinds for pool in self._world.models[entry.name].pools):
            raise BadRequest(
                f"model {entry.name} cannot rank texts; that takes a reranker, a GGUF model whose pooling type is rank"
            )

    def _default_name(self) -> str:
        return next(iter(self._catalogue.entries), "")

    def _models(self) -> tuple[ModelInfo, ...]:
        return tuple(
            self._info(entry) for entry in self._catalogue.entries.values() if entry.name not in self._loads.in_progress
        )

    def _info(self, entry: Entry) -> ModelInfo:
        model = self._world.models.get(entry.name)
        return survey.model_info(entry, model, self._runtime, is_default=self._default_name() == entry.name)

    def _node_infos(self, ids: list[str], memory: dict[str, tuple[int, int]] | None = None) -> list[NodeInfo]:
        nodes = sorted((self._world.nodes[n] for n in ids if n in self._world.nodes), key=lambda node: node.number)
        attached = self._operating.attached
        return [
            survey.node_info(
                node,
                self._runtime,
                (memory or {}).get(node.id, (0, 0)),
                attached[node.id].url if node.id in attached else "",
            )
            for node in nodes
        ]

    def _request_for(self, node: Node) -> NodeRequest:
        return self._operating.request_for(node)

    def _changed(self) -> None:
        if self._settings.state.checkpoint_on_change:
            self._keeper.save_soon()

    def _eviction(self, launcher: Launcher) -> Eviction:
        patience_s = self._settings.orchestrator.queue_timeout
        return Eviction(self._settings.models.max_loaded, patience_s, launcher, lambda: self._runtime)

    def _heard(self, event: ClusterEvent) -> None:
        self._metrics.happened(event)
        match event.kind:
            case "node_gone":
                self._operating.forget(event.fields["node"])
            case "model_removed":
                self._catalogue.entries.pop(event.fields["model"], None)
