"""How the cluster looks from outside: nodes, models and the whole, as the classes that `control` and `types` define.

Reads the orchestrator's world and the runtime's live nodes; changes nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque

from llambo.cluster.catalogue import Entry
from llambo.cluster.control import BalancerStats, ClusterStatus, NodeCounts, NodeInfo, RequestCounts, SlotCounts
from llambo.cluster.metrics import MetricsSnapshot
from llambo.cluster.runtime import Runtime
from llambo.cluster.state import GENERATE, Model, Node, NodeState
from llambo.cluster.world import World, serves
from llambo.core import paths
from llambo.core.types import ModelInfo
from llambo.core.version import __version__

WINDOW = 5
"""Over so many seconds the present rate of tokens is taken."""


class Meter:
    """Counts tokens as they come, and tells how many came per second of late.

    A token is only added; once in `interval_s` seconds, and not while none comes, a timer notes how many there are.
    """

    def __init__(self, interval_s: float = 1.0) -> None:
        self.total = 0
        self._interval_s = interval_s
        self._totals: deque[int] = deque([0], maxlen=WINDOW + 1)  # at the ends of the last intervals
        self._timer: asyncio.TimerHandle | None = None

    def add(self, count: int) -> None:
        """So many tokens came now; called within the loop."""
        self.total += count
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._note)

    @property
    def per_s(self) -> float:
        """Tokens per second over the last whole intervals, of which the first began with the first token."""
        return (self._totals[-1] - self._totals[0]) / (WINDOW * self._interval_s)

    def _note(self) -> None:
        self._timer = None
        self._totals.append(self.total)
        if self._totals[0] != self.total:
            self._timer = asyncio.get_running_loop().call_later(self._interval_s, self._note)


def model_info(entry: Entry, model: Model | None, runtime: Runtime, *, is_default: bool) -> ModelInfo:
    """One model, over all its nodes that answer."""
    nodes = [node for node in (model.nodes() if model else ()) if GENERATE in node.kinds and not node.is_leaving]
    serving = [node for node in nodes if serves(node)]
    first = serving[0] if serving else None
    place = runtime.place_of(first.id) if first else None
    return ModelInfo(
        name=entry.name,
        path=entry.path,
        state=_model_state(nodes),
        ctx=first.ctx if first else entry.options.ctx,
        slots=sum(node.slots for node in serving) if serving else entry.options.slots,
        busy=sum(node.busy for node in serving),
        node=first.id if first else "",
        pid=place.handle.pid if place else 0,
        is_default=is_default,
    )


def answering_models(world: World, node_type: str = "") -> set[str]:
    """The models that nodes of that type ("": any) serve for answers now."""
    return {
        model.name
        for model in world.models.values()
        for pool in model.pools
        if pool.slots and GENERATE in pool.kinds and node_type in ("", pool.type)
    }


def _model_state(nodes: list[Node]) -> str:
    if any(serves(node) for node in nodes):
        return "ready"
    if not nodes:
        return "unloaded"
    if all(node.is_given_up for node in nodes):
        return f"failed: {nodes[0].reason}"
    return "restarting" if any(node.has_served for node in nodes) else "loading"


def node_info(node: Node, runtime: Runtime, memory: tuple[int, int], url: str) -> NodeInfo:
    """One node; `memory` is (resident, unshared) in bytes, `url` what an attached one was attached by."""
    place = runtime.place_of(node.id)
    handle = place.handle if place is not None and place.epoch == node.epoch else None
    return NodeInfo(
        id=node.id,
        type=node.type,
        state=node.state.value,
        pid=handle.pid if handle else 0,
        epoch=node.epoch,
        machine=handle.machine if handle else "",
        model=node.model,
        slots=node.slots,
        busy=node.busy,
        address=handle.address if handle else url,
        socket=handle.socket_path if handle else "",
        sandbox=handle.sandbox if handle else (),
        rss_bytes=memory[0],
        uss_bytes=memory[1],
        requests=node.requests,
        errors=node.errors,
        launcher=node.launcher,
        ctx=node.ctx,
        tokens_per_s=round(node.rate_tps, 1),
        reason=node.reason,
        log=handle.log_path if handle else "",
        backend=handle.backend if handle else "",
    )


def memory_of(pids: list[int]) -> dict[int, tuple[int, int]]:
    """(resident, unshared) bytes of processes that live; blocks for about a millisecond each."""
    import psutil  # noqa: PLC0415 - 20 ms that only a look should cost

    found: dict[int, tuple[int, int]] = {}
    for pid in pids:
        try:
            facts = psutil.Process(pid).memory_full_info()
        except psutil.Error:
            continue
        found[pid] = (facts.rss, facts.uss)
    return found


def cluster_status(
    world: World, models: tuple[ModelInfo, ...], meter: Meter, *, uptime_s: float, problems: tuple[str, ...]
) -> ClusterStatus:
    """The whole cluster."""
    nodes = [node for node in world.nodes.values() if not node.is_leaving]
    states = Counter(node.state for node in nodes)
    totals = world.totals
    launchers = sorted({node.launcher for node in nodes}) or ["local"]
    troubles = (*node_problems(nodes), *problems)
    return ClusterStatus(
        state=_cluster_state(states, troubles, len(nodes)),
        version=__version__,
        launcher="+".join(launchers),
        strategy=world.balancer.strategy,
        uptime_s=round(uptime_s, 3),
        nodes=NodeCounts(len(nodes), states[NodeState.READY], states[NodeState.BUSY], states[NodeState.DEAD]),
        slots=SlotCounts(*_slots(nodes)),
        queued=sum(len(model.queue) for model in world.models.values()),
        requests=RequestCounts(totals.requests, totals.failed, totals.cancelled, totals.failovers, totals.retries),
        tokens_per_s=round(meter.per_s, 1),
        models=models,
        problems=troubles,
        home=str(paths.home()),
        pid=os.getpid(),
    )


def node_problems(nodes: list[Node]) -> list[str]:
    """A sentence for every node that is wanted and does not serve."""
    bad = (NodeState.SUSPECT, NodeState.DEAD)
    return [f"node {node.id} is {node.state}: {node.reason}" for node in nodes if node.state in bad]


def _cluster_state(states: Counter[NodeState], troubles: tuple[str, ...], total: int) -> str:
    if troubles:
        return "degraded"
    if not total:
        return "empty"
    return "starting" if states[NodeState.STARTING] else "ready"


def _slots(nodes: list[Node]) -> tuple[int, int]:
    serving = [node for node in nodes if serves(node)]
    return sum(node.slots for node in serving), sum(node.busy for node in serving)


def balancer_stats(world: World) -> BalancerStats:
    """How requests have been spread."""
    totals = world.totals
    return BalancerStats(
        strategy=world.balancer.strategy,
        placed=totals.placed,
        queued=sum(len(model.queue) for model in world.models.values()),
        retries=totals.retries,
        failovers=totals.failovers,
        prompt_tokens=totals.prompt_tokens,
        cached_tokens=totals.cached_tokens,
        by_node={node.id: node.requests for node in world.nodes.values()},
    )


def metrics_snapshot(world: World, models: tuple[ModelInfo, ...]) -> MetricsSnapshot:
    """What the gauges show."""
    nodes = list(world.nodes.values())
    total, busy = _slots(nodes)
    return MetricsSnapshot(
        nodes=Counter((node.state.value, node.type) for node in nodes),
        slots_busy=busy,
        slots_free=max(0, total - busy),
        queue_depth=sum(len(model.queue) for model in world.models.values()),
        models=Counter(info.state.split(":")[0] for info in models),
    )
