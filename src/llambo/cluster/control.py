"""What an operator may ask of a cluster, beside its answers: nodes, scale, strategy, events, checkpoints.

`api.Cluster` offers it; the daemon's control interface serves it to `llamboctl`. The JSON that the outside sees is made
of these classes, field by field.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from llambo.core.types import ModelInfo

SpawnProgress = Callable[[int, int], None]
"""Told (nodes ready, nodes wanted), each time one more is ready."""


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """One node. `pid` 0, `socket` "" and both memory figures 0 where the node is not a process of this machine.

    `state` is "starting", "ready", "busy", "draining", "suspect" or "dead", and `reason` says why it is one of the last
    two. `epoch` counts the processes that the node has been. `uss_bytes` is memory that no other process shares.
    `backend` names the CPU backend that was built here and that it computes with, "" for the engine's own.
    """

    id: str
    type: str
    state: str
    pid: int
    epoch: int
    machine: str
    model: str
    slots: int
    busy: int
    address: str
    socket: str
    sandbox: tuple[str, ...]
    rss_bytes: int
    uss_bytes: int
    requests: int
    errors: int
    launcher: str
    ctx: int
    tokens_per_s: float
    reason: str
    log: str
    backend: str = ""


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """Nodes by what they can do now; those that start, drain or are suspect are in `total` alone."""

    total: int
    ready: int
    busy: int
    dead: int


@dataclass(frozen=True, slots=True)
class SlotCounts:
    """Parallel sequences of all nodes that serve."""

    total: int
    busy: int


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests since the cluster started; `failed` ended in an error, `cancelled` by their caller."""

    total: int
    failed: int
    cancelled: int
    failovers: int
    retries: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster at one moment.

    `state` is "ready" (every wanted node serves), "degraded" (some do not; `problems` says which and why), "starting"
    or "empty" (no node wanted).
    """

    state: str
    version: str
    launcher: str
    strategy: str
    uptime_s: float
    nodes: NodeCounts
    slots: SlotCounts
    queued: int
    requests: RequestCounts
    tokens_per_s: float
    models: tuple[ModelInfo, ...]
    problems: tuple[str, ...]
    home: str
    pid: int


@dataclass(frozen=True, slots=True)
class BalancerStats:
    """How requests have been spread: requests per node, and what the prefix cache saved."""

    strategy: str
    placed: int
    queued: int
    retries: int
    failovers: int
    prompt_tokens: int
    cached_tokens: int
    by_node: dict[str, int]

    @property
    def hit_ratio(self) -> float:
        """Share of prompt tokens that a node had in its cache."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """Something that happened, for people and logs: `kind` such as "node_ready", `time` in seconds since the epoch."""

    time: float
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


class Control(Protocol):
    """The operator's side of a cluster. Coroutines raise only `LlamboError` and take effect before they return."""

    async def spawn(
        self,
        count: int,
        *,
        node_type: str = "",
        model: str = "",
        slots: int = 0,
        progress: SpawnProgress | None = None,
    ) -> list[NodeInfo]:
        """Starts `count` nodes and returns once all are ready; when one cannot start, none of them stays.

        "" is the default type and the default model; `slots` 0 is what the type says.

        Raises: `BadRequest` for a count or type that cannot be, `NoMemory` naming how many would fit, and what loading
        a model raises.
        """
        ...

    async def attach(self, url: str, *, node_type: str = "", api_key: str = "", api_key_env: str = "") -> NodeInfo:
        """Takes in a running server as a node. `api_key` is kept in memory alone; `api_key_env` names where it is from.

        Raises: `BadRequest`, `Unreachable`, `Refused`.
        """
        ...

    async def detach(self, node_id: str) -> None:
        """Lets an attached node finish, then forgets it. Raises: `NotFound`, `BadRequest` for a node of ours."""
        ...

    async def scale(self, count: int, *, model: str = "", progress: SpawnProgress | None = None) -> list[NodeInfo]:
        """Makes it `count` nodes that serve `model` ("": the default one): starts more, or drains the least busy ones.

        Raises: `BadRequest` below `orchestrator.min_nodes` or above `max_nodes`, and what `spawn` raises.
        """
        ...

    async def drain(self, node_id: str) -> None:
        """Lets a node finish what it is doing, hands its conversations on, and ends it. Raises: `NotFound`."""
        ...

    async def kill(self, node_id: str) -> None:
        """Ends a node at once; its answers go on elsewhere. It is not started again. Raises: `NotFound`."""
        ...

    async def restart(self, node_id: str) -> NodeInfo:
        """Ends a node's process and starts it again under the same id, with the next epoch. Raises: `NotFound`."""
        ...

    async def pin(self, model: str, *, pinned: bool) -> None:
        """Keeps a model from being unloaded to make room for another, or lets it. Raises: `NotFound`."""
        ...

    def set_strategy(self, strategy: str) -> None:
        """Balances by `strategy` from now on. Raises: `BadRequest` naming the strategies there are."""
        ...

    def balancer_stats(self) -> BalancerStats:
        """How requests have been spread."""
        ...

    async def nodes(self) -> list[NodeInfo]:
        """Every node, in order of its number, with its memory measured now."""
        ...

    def cluster_status(self) -> ClusterStatus:
        """The whole cluster now; never blocks."""
        ...

    def events(self) -> AsyncGenerator[ClusterEvent, None]:
        """Everything that happens from now on; a reader too slow gets one event "lost" with their number."""
        ...

    def metrics(self) -> str:
        """The cluster's own figures in Prometheus's text format; never blocks."""
        ...

    async def node_metrics(self) -> str:
        """What the nodes' own servers count, in the same format, as `llamacpp_*` with a label `node`.

        Takes a second and a half at most: a node that does not answer in time is left out.
        """
        ...

    def checkpoint(self) -> dict[str, Any]:
        """The state that a restart restores, as plain JSON values."""
        ...

    async def save_checkpoint(self, path: Path | None = None) -> Path:
        """Writes the checkpoint atomically (None: where the configuration says) and returns where it is.

        Raises: `LlamboError` when it cannot be written; the old one stays.
        """
        ...

    async def restore_checkpoint(self, path: Path | None = None) -> list[str]:
        """Brings the checkpoint's models and nodes up beside what there is; returns what could not be, in sentences.

        Raises: `NotFound` without a file, `BadRequest` for a damaged one.
        """
        ...
