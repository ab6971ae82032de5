"""What the orchestrator knows: nodes, models and requests, and the table of what a node's state may become.

Pure data with the small changes that keep it consistent. It decides nothing: that is `orchestrator`'s.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from enum import StrEnum
from math import exp

from llambo.cluster.autoscaler import Trend
from llambo.cluster.waiting import FairQueue
from llambo.core.types import LoadOptions

GENERATE, EMBED, RERANK = "generate", "embed", "rerank"
LOCAL, ATTACHED = "local", "attach"
EMBEDDING_TYPE, RERANKING_TYPE = "embedding", "reranking"
"""The types of nodes that give embeddings, or rank texts, and nothing else: one that pools decodes more slowly."""
TYPE_OF_KIND = {EMBED: EMBEDDING_TYPE, RERANK: RERANKING_TYPE}
"""What a node is that was started for one kind of work; answers come from nodes of the model's own type."""
POOLING_TYPES = frozenset(TYPE_OF_KIND.values())


class NodeState(StrEnum):
    """Where a node is in its life."""

    STARTING = "starting"  # its process loads the model
    READY = "ready"  # serves, with a free slot
    BUSY = "busy"  # serves, every slot taken
    DRAINING = "draining"  # finishes what it has, gets nothing new
    SUSPECT = "suspect"  # missed a health check, or answers wrongly: gets nothing new
    DEAD = "dead"  # no process; waits for its restart, or was given up


class Change(StrEnum):
    """What can happen to a node."""

    STARTED = "started"
    FAILED = "failed to start"
    FILLED = "last slot taken"
    FREED = "slot freed"
    MISSED = "health check missed"
    ANSWERED = "health check answered"
    QUARANTINED = "answers wrongly"
    DRAINED = "told to drain"
    ENDED = "process gone"
    RESTARTED = "restart due"


S, C = NodeState, Change
TRANSITIONS: dict[tuple[NodeState, Change], NodeState] = {
    (S.STARTING, C.STARTED): S.READY,
    (S.STARTING, C.FAILED): S.DEAD,
    (S.STARTING, C.ENDED): S.DEAD,
    (S.STARTING, C.DRAINED): S.DEAD,
    (S.READY, C.FILLED): S.BUSY,
    (S.BUSY, C.FREED): S.READY,
    (S.READY, C.MISSED): S.SUSPECT,
    (S.BUSY, C.MISSED): S.SUSPECT,
    (S.SUSPECT, C.MISSED): S.SUSPECT,
    (S.DRAINING, C.MISSED): S.DRAINING,
    (S.SUSPECT, C.ANSWERED): S.READY,
    (S.READY, C.QUARANTINED): S.SUSPECT,
    (S.BUSY, C.QUARANTINED): S.SUSPECT,
    (S.READY, C.DRAINED): S.DRAINING,
    (S.BUSY, C.DRAINED): S.DRAINING,
    (S.SUSPECT, C.DRAINED): S.DRAINING,
    (S.READY, C.ENDED): S.DEAD,
    (S.BUSY, C.ENDED): S.DEAD,
    (S.SUSPECT, C.ENDED): S.DEAD,
    (S.DRAINING, C.ENDED): S.DEAD,
    (S.DEAD, C.RESTARTED): S.STARTING,
}
"""Every change a node may undergo; what is not here cannot happen. docs/cluster.md draws it."""

SERVING = frozenset({NodeState.READY, NodeState.BUSY})


@dataclass(slots=True, eq=False)
class Node:
    """One node. `slots` and `ctx` are what was asked for until the node itself has said."""

    id: str
    number: int
    model: str
    type: str
    options: LoadOptions
    launcher: str = "local"
    kinds: frozenset[str] = frozenset({GENERATE})
    state: NodeState = NodeState.STARTING
    epoch: int = 1
    slots: int = 1
    ctx: int = 0
    busy: int = 0
    reason: str = ""
    requests: int = 0
    errors: int = 0
    rate_tps: float = 0.0  # generated tokens per second at its usual load, smoothed; 0: not measured
    missed: int = 0
    is_probed: bool = False
    has_served: bool = False
    is_on_demand: bool = False  # nobody ordered it: other models may be unloaded for it
    likeness: str = ""
    is_leaving: bool = False  # killed, detached or freed: forgotten once its process is gone
    is_given_up: bool = False
    deaths: tuple[float, ...] = ()
    answer: str | None = None  # to the seeded probe
    wrong_answers: int = 0
    probes: int = 0
    next_probe: float = 0.0  # an earlier timer is one that a later word has replaced
    touched: int = 0  # how many requests had been placed when it got its last one
    fading: float = 0.0  # its requests, counted the less the longer ago they were: as of `faded_at`
    faded_at: int = 0  # how many its pool had been given by then
    pool: Pool | None = field(default=None, repr=False)
    free_index: int = -1  # in its pool's list of free nodes
    is_counted: bool = False  # among its pool's coming nodes
    served_slots: int = 0  # its share of its pool's slots

    @property
    def is_coming(self) -> bool:
        """Whether it serves or will: it starts, restarts or is being looked at."""
        return not (self.is_leaving or self.is_given_up or self.state is NodeState.DRAINING)

    @property
    def lately(self) -> float:
        """Requests that it was given lately: among the last ones of its pool, as many as that has slots."""
        pool = self.pool
        if pool is None or not pool.slots:
            return 0.0
        return self.fading * exp((self.faded_at - pool.placed) / pool.slots)

    @property
    def share(self) -> float:
        """What `lately` would be, had its pool's requests been spread over the slots evenly."""
        pool = self.pool
        if pool is None or not pool.slots:
            return 0.0
        return self.slots * (1 - exp(-pool.placed / pool.slots))

    def place(self) -> None:
        """It is given a request."""
        assert self.pool is not None
        self.pool.placed += 1
        self.fading = self.lately + 1
        self.faded_at = self.pool.placed


@dataclass(slots=True, eq=False)
class Pool:
    """The nodes of one model that are alike: one type, one kind of work, one context size.

    `free` are those a request can go to, `coming` the number that serve or will, `slots` those of serving nodes. `ctx`
    is in tokens per slot (0: not known).
    """

    model: str
    type: str
    kinds: frozenset[str]
    ctx: int = 0
    nodes: dict[str, Node] = field(default_factory=dict)
    free: list[Node] = field(default_factory=list)
    rotation: OrderedDict[str, Node] = field(default_factory=OrderedDict)  # the same, longest untouched first
    coming: int = 0
    slots: int = 0
    placed: int = 0  # requests that its nodes were given

    def add(self, node: Node) -> None:
        """Takes the node in."""
        self.nodes[node.id] = node
        node.pool = self
        node.fading, node.faded_at = 0.0, self.placed
        self.refresh(node)

    def remove(self, node: Node) -> None:
        """Lets the node go."""
        del self.nodes[node.id]
        node.pool = None
        self._take(node)
        self._count(node, False, 0)

    def refresh(self, node: Node) -> None:
        """Puts `node` into the free ones or takes it out, and counts it, as its state says."""
        state = node.state
        if state is not NodeState.READY or node.busy >= node.slots:
            self._take(node)
        elif node.free_index < 0:
            node.free_index = len(self.free)
            self.free.append(node)
            self.rotation[node.id] = node
        self._count(node, node.is_coming, node.slots if state in SERVING else 0)

    def _count(self, node: Node, is_coming: bool, slots: int) -> None:
        self.coming += is_coming - node.is_counted
        self.slots += slots - node.served_slots
        node.is_counted, node.served_slots = is_coming, slots

    def _take(self, node: Node) -> None:
        if node.free_index < 0:
            return
        last = self.free.pop()
        if last is not node:
            self.free[node.free_index] = last
            last.free_index = node.free_index
        node.free_index = -1
        del self.rotation[node.id]


@dataclass(slots=True, eq=False)
class Model:
    """One model under its name. `options` and `type` are what a node gets that is started for it on demand."""

    name: str
    options: LoadOptions
    type: str
    pinned: bool = False
    is_leaving: bool = False  # freed: forgotten with its last node
    attached: bool = False  # there because an attached node serves it, and gone with the last of them
    pools: list[Pool] = field(default_factory=list)
    queue: FairQueue[Flight] = field(default_factory=FairQueue)
    in_flight: int = 0
    last_used: float = 0.0
    is_unloaded: bool = False  # it made room for another; a request or an order brings it back
    added_at: float = 0.0
    failed_at: float = float("-inf")  # when a node of it last could not start
    trend: Trend = field(default_factory=Trend)

    def nodes(self) -> list[Node]:
        """Its nodes, those that are leaving too."""
        return [node for pool in self.pools for node in pool.nodes.values()]


@dataclass(slots=True, eq=False)
class Crowd:
    """Requests that belong apart, as the voters of one question do: how many of them each node has been given."""

    nodes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Route:
    """What choosing a node needs to know of a request. `chain` are the hashes of its text's prefixes, `size_chars` its
    length, `max_tokens` the answer's (0: open), `crowd` those it should be apart from."""

    id: int
    model: str
    kind: str = GENERATE
    session: str = ""
    node_type: str = ""
    chain: tuple[int, ...] = ()
    size_chars: int = 0
    max_tokens: int = 0
    crowd: Crowd | None = None


@dataclass(slots=True, eq=False)
class Flight:
    """A request from its arrival to its end. `barred` are the (node, epoch) that failed it."""

    route: Route
    arrived: float
    deadline: float
    node: Node | None = None
    epoch: int = 0
    placed_at: float = 0.0
    attempts: int = 0
    early_losses: int = 0  # nodes that died of it, or with it, before they gave a token
    has_delivered: bool = False
    barred: frozenset[tuple[str, int]] = frozenset()
    min_ctx: int = 0
    matched: int = 0  # hashes of the chain that the chosen node is thought to have
    last_error: tuple[str, str] = ("", "")  # code and message of the failure before
    is_orphan: bool = False  # its model was freed while it was on a node: another of that name is not the same

    @property
    def session(self) -> str:
        """The lane in the queue."""
        return self.route.session

    @property
    def demand(self) -> tuple[str, str, int]:
        """What a node must be to serve it: of that kind and type, with that context."""
        return self.route.kind, self.route.node_type, self.min_ctx


@dataclass(slots=True)
class Totals:
    """What has happened since the start."""

    requests: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    placed: int = 0
    retries: int = 0
    failovers: int = 0
    restarts: int = 0
    scaled_up: int = 0
    scaled_down: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0


def transition_diagram() -> str:
    """The table as a Mermaid state diagram, for docs/cluster.md."""
    lines = ["stateDiagram-v2", "    [*] --> starting: spawned or attached"]
    grouped: dict[tuple[NodeState, NodeState], list[str]] = {}
    for (state, change), target in TRANSITIONS.items():
        grouped.setdefault((state, target), []).append(change.value)
    lines += [f"    {state} --> {target}: {', '.join(why)}" for (state, target), why in grouped.items()]
    return "\n".join([*lines, "    draining --> [*]: idle and stopped", "    dead --> [*]: killed, freed or detached"])
