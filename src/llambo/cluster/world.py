"""The orchestrator's memory: all nodes, models and requests, what it wants done, and what it waits for.

Owned by `orchestrator`; `placement`, `lifecycle` and `scaling` are its hands and share it. Nothing else touches it,
except to read. Pure: time comes in as `now`, chance as `chance`.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import Enum

from llambo.cluster.autoscaler import ScalePolicy
from llambo.cluster.balancer import Balancer, Chance, Rates
from llambo.cluster.events import Command, Publish
from llambo.cluster.prefix import PrefixIndex
from llambo.cluster.state import SERVING, TRANSITIONS, Change, Flight, Model, Node, NodeState, Pool, Totals

MAX_LATE_S = 5.0
"""A timer this much too late means that we slept, not the others: the clock goes on from there as if we had not."""
ROUNDING_S = 1e-6
"""Between a timer and `wake_at` on the caller's clock lies a subtraction that rounds: so much too early is due too."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that decisions depend on; times in seconds. `scale` holds the bounds also when nothing scales."""

    strategy: str = "prefix-affinity"
    auto_scale: bool = False
    scale: ScalePolicy = field(default_factory=ScalePolicy)
    queue_limit: int = 64  # per node
    queue_timeout_s: float = 30.0
    max_retries: int = 3
    health_interval_s: float = 5.0
    health_failures: int = 3
    probe_interval_s: float = 60.0
    probes_per_s: float = 50.0  # over all nodes: a thousand nodes are checked less often, not at more cost
    max_crashes: int = 3
    crash_window_s: float = 60.0


class Timer(Enum):
    """What is to happen when a time comes."""

    PROBE = "probe"
    RESTART = "restart"
    DEADLINE = "deadline"
    SCALE = "scale"


class World:
    """Everything there is, with the small operations that keep its indices right."""

    def __init__(self, policy: Policy, chance: Chance) -> None:
        self.policy = policy
        self.chance = chance
        self.models: dict[str, Model] = {}
        self.nodes: dict[str, Node] = {}
        self.flights: dict[int, Flight] = {}
        self.totals = Totals()
        self.index = PrefixIndex()
        self.rates = Rates()
        self.balancer = Balancer(policy.strategy, chance, self.index, self.rates)
        self.commands: list[Command] = []
        self.now = 0.0
        self._numbers = 0
        self._timers: list[tuple[float, int, Timer, str | int, int]] = []
        self._timer_count = 0
        self._behind = 0.0  # how far `now` is behind the caller's clock

    # --- time -----------------------------------------------------------------------------------------------------

    def advance(self, clock: float) -> None:
        """Sets `now`. A clock that went back stands still; one that jumped past our timers moved without us."""
        now = clock - self._behind
        if self._timers and now > self._timers[0][0] + MAX_LATE_S:
            now = max(self.now, self._timers[0][0] + MAX_LATE_S)
        elif now < self.now:
            now = self.now
        self._behind = clock - now
        self.now = now

    def at(self, delay_s: float, timer: Timer, key: str | int = "", epoch: int = 0) -> None:
        """Sets a timer; it is of no effect when what it is about has moved on to another epoch."""
        self._timer_count += 1
        heapq.heappush(self._timers, (self.now + delay_s, self._timer_count, timer, key, epoch))

    def due(self) -> tuple[Timer, str | int, int] | None:
        """The next timer whose time has come."""
        if self._timers and self._timers[0][0] <= self.now + ROUNDING_S:
            time, _, timer, key, epoch = heapq.heappop(self._timers)
            self.now = max(self.now, time)
            return timer, key, epoch
        return None

    @property
    def wake_at(self) -> float | None:
        """When, on the caller's clock, the next timer is due."""
        return self._timers[0][0] + self._behind if self._timers else None

    # --- words ----------------------------------------------------------------------------------------------------

    def say(self, command: Command) -> None:
        """Wants something done."""
        self.commands.append(command)

    def publish(self, kind: str, **fields: object) -> None:
        """Tells those who watch."""
        self.commands.append(Publish(kind, fields))

    # --- nodes ----------------------------------------------------------------------------------------------------

    def new_number(self) -> int:
        """A number that no node had."""
        self._numbers += 1
        return self._numbers

    def use_number(self, number: int) -> None:
        """A restored node has that number; new ones come after it."""
        self._numbers = max(self._numbers, number)

    def add_node(self, node: Node) -> None:
        """Makes the node known, in the pool of its like."""
        self.nodes[node.id] = node
        self._join_pool(node)
        self.index.size_for(len(self.nodes))

    def remove_node(self, node: Node) -> None:
        """Forgets the node."""
        self._leave_pool(node)
        del self.nodes[node.id]
        self.measure(node, 0.0)
        self.index.drop(node.id)
        self.index.size_for(len(self.nodes))

    def describe(self, node: Node, slots: int, ctx: int, kinds: frozenset[str]) -> None:
        """The node is other than was thought."""
        rate = node.rate_tps
        self.measure(node, 0.0)
        self._leave_pool(node)
        node.slots, node.ctx, node.kinds = slots, ctx, kinds
        self._join_pool(node)
        self.measure(node, rate)

    def measure(self, node: Node, rate_tps: float) -> None:
        """The node's rate is known now (0: no more)."""
        self.rates.measured(node.rate_tps / node.slots, rate_tps / node.slots)
        node.rate_tps = rate_tps

    def change(self, node: Node, change: Change, reason: str = "") -> None:
        """Moves the node to where the table says. Raises: `KeyError` for what cannot happen to it."""
        node.state = TRANSITIONS[node.state, change]
        node.reason = reason
        if node.state is NodeState.READY and node.busy >= node.slots:  # it served on while it was suspect
            node.state = TRANSITIONS[node.state, Change.FILLED]
        self.pool_of(node).refresh(node)

    def take_slot(self, node: Node) -> None:
        """One more request is on the node."""
        node.busy += 1
        node.requests += 1
        node.place()
        node.touched = self.totals.placed
        if node.busy >= node.slots:
            self.change(node, Change.FILLED)
        else:
            self.pool_of(node).rotation.move_to_end(node.id)

    def give_slot(self, node: Node, epoch: int) -> bool:
        """A request left the node; one of an earlier epoch, or of a dead node, left with the process (False)."""
        if node.epoch != epoch or node.busy == 0:
            return False
        node.busy -= 1
        if node.state is NodeState.BUSY:
            self.change(node, Change.FREED, node.reason)
        return True

    def current(self, node_id: str, epoch: int) -> Node | None:
        """The node, if it is still what the word of that epoch is about."""
        node = self.nodes.get(node_id)
        return node if node is not None and node.epoch == epoch else None

    def pool_of(self, node: Node) -> Pool:
        """The pool that the node is in."""
        assert node.pool is not None
        return node.pool

    def _join_pool(self, node: Node) -> None:
        pools = self.models[node.model].pools
        for pool in pools:
            if (pool.type, pool.kinds, pool.ctx) == (node.type, node.kinds, node.ctx):
                break
        else:
            pool = Pool(node.model, node.type, node.kinds, node.ctx)
            pools.append(pool)
        pool.add(node)

    def _leave_pool(self, node: Node) -> None:
        pool = self.pool_of(node)
        pool.remove(node)
        if not pool.nodes:
            self.models[node.model].pools.remove(pool)


def is_coming(node: Node) -> bool:
    """Whether the node serves or will: it starts, restarts or is being looked at."""
    return node.is_coming


def serves(node: Node) -> bool:
    """Whether the node takes or holds requests."""
    return node.state in SERVING
