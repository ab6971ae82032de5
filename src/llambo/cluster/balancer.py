"""Which of the free nodes a request goes to: the strategies, by name.

Pure. Every strategy takes the pools whose nodes may serve the request and gives one of their free nodes, or None. It
costs the same in a cluster of ten nodes and of ten thousand: two nodes drawn at random are compared, never all.

A node's cost is what one more request makes of its load: (busy + 1) / (slots x relative speed). Speed is what a slot of
the node was measured to generate, over the mean of its peers, so that nodes of unequal hardware finish together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from llambo.cluster.prefix import PrefixIndex
from llambo.cluster.state import Crowd, Flight, Node, Pool
from llambo.core.errors import BadRequest

COMPARED_ALL = 8
"""Up to so many free nodes all are compared: in a small cluster the best is worth more than the time to find it."""
DRAWS = 8
"""How often a draw is repeated that hit a node which has failed this request already."""
UNEVEN = 0.5
"""A warm node that is fuller than the alternative by more than this share of its slots is passed over."""
SPEED_BOUNDS = (0.05, 20.0)
MUCH_SLOWER = 2.0
"""Idle nodes take turns unless one is slower by this factor: the speed of a node was measured at the load it had."""
PREFIX_AFFINITY = "prefix-affinity"
STRATEGIES = ("round-robin", "least-loaded", "random", "cognitive-affinity", PREFIX_AFFINITY)
"""The names of the strategies."""
FAIR = 1.25
"""A node that has had this many times its share, and one at least, is no place for a new conversation that could go
anywhere: it would compete there with those that cannot."""
CHARS_PER_TOKEN = 3
"""For guessing, on the safe side, what context a text needs before anybody has counted its tokens."""
ANSWER_TOKENS = 256
"""The length that an answer of open length is guessed to have."""


class Chance(Protocol):
    """A source of randomness, as `random.Random` is one."""

    def random(self) -> float:
        """A number in [0, 1)."""
        ...


class Rates:
    """The mean speed of a slot of measured nodes, kept as they are measured."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._count = 0

    def measured(self, old: float, new: float) -> None:
        """A node's rate per slot changed; 0 is "not measured"."""
        self._sum += new - old
        self._count += (new > 0) - (old > 0)

    @property
    def mean(self) -> float:
        """Tokens per second of a typical slot; 0 when none was measured."""
        return self._sum / self._count if self._count > 0 else 0.0


class Balancer:
    """Chooses by the strategy of that name. Raises: `BadRequest` for a name that is none."""

    def __init__(self, strategy: str, chance: Chance, index: PrefixIndex, rates: Rates) -> None:
        self._chance = chance
        self._index = index
        self._rates = rates
        ways = (
            self._round_robin,
            self._least_loaded,
            self._random,
            self._cognitive_affinity,
            self._prefix_affinity,
        )
        self._strategies: dict[str, Callable[[Sequence[Pool], Flight], Node | None]] = dict(
            zip(STRATEGIES, ways, strict=True)
        )
        self.strategy = ""
        self.use(strategy)

    def use(self, strategy: str) -> None:
        """Chooses by that strategy from now on."""
        if strategy not in self._strategies:
            raise BadRequest(f"no strategy is called {strategy!r}; there are {', '.join(self._strategies)}")
        self.strategy = strategy

    def choose(self, pools: Sequence[Pool], flight: Flight) -> Node | None:
        """A node of `pools` with a free slot that has not failed this request, or None."""
        flight.matched = 0
        if flight.route.crowd is not None:
            return self._apart(pools, flight, flight.route.crowd)
        return self._strategies[self.strategy](pools, flight)

    def _apart(self, pools: Sequence[Pool], flight: Flight, crowd: Crowd) -> Node | None:
        """By the strategy a node that has none of the crowd, else the one that has fewest of them; counts it there."""
        held = crowd.nodes
        barred = flight.barred
        flight.barred = barred | {(node.id, node.epoch) for name in held if (node := _find(pools, name)) is not None}
        node = self._strategies[self.strategy](pools, flight)
        flight.barred = barred
        if node is None:  # then the free ones are among the crowd's, of which there are few
            free = [node for pool in pools for node in pool.free if _may_serve(node, flight)]
            node = min(free, key=lambda node: (held.get(node.id, 0), self._cost(node)), default=None)
        if node is not None:
            held[node.id] = held.get(node.id, 0) + 1
        return node

    def _round_robin(self, pools: Sequence[Pool], flight: Flight) -> Node | None:
        """The node that has waited longest since its last request. Weights do not matter here."""
        found: Node | None = None
        for pool in pools:
            node = next((node for node in pool.rotation.values() if _may_serve(node, flight)), None)
            if node is not None and (found is None or node.touched < found.touched):
                found = node
        return found

    def _random(self, pools: Sequence[Pool], flight: Flight) -> Node | None:
        return self._draw(pools, flight) or _first(pools, flight)

    def _least_loaded(self, pools: Sequence[Pool], flight: Flight) -> Node | None:
        if _count_free(pools) <= COMPARED_ALL:
            nodes = [node for pool in pools for node in pool.free if _may_serve(node, flight)]
            if not nodes:
                return None
            start = int(self._chance.random() * len(nodes))  # so that equals take turns
            best = min(nodes[start:] + nodes[:start], key=self._cost)
            return best if best.busy else self._longest_idle(nodes, MUCH_SLOWER * self._cost(best))
        one, other = self._draw(pools, flight), self._draw(pools, flight)
        if one is None or other is None:
            return one or other or _first(pools, flight)
        return min(one, other, key=self._cost)

    def _longest_idle(self, nodes: Sequence[Node], most: float) -> Node:
        """The idle node of at most that cost whose last request is longest ago; there is one."""
        return min((node for node in nodes if not node.busy and self._cost(node) <= most), key=_touched)

    def _cognitive_affinity(self, pools: Sequence[Pool], flight: Flight) -> Node | None:
        """The smallest type of node whose context holds what is asked, so that large nodes are left for large work."""
        if len(pools) == 1:
            return self._least_loaded(pools, flight)
        route = flight.route
        needed = route.size_chars // CHARS_PER_TOKEN + (route.max_tokens or ANSWER_TOKENS)
        for pool in sorted(pools, key=lambda pool: (0 < pool.ctx < needed, pool.ctx)):
            if node := self._least_loaded((pool,), flight):
                return node
        return None

    def _prefix_affinity(self, pools: Sequence[Pool], flight: Flight) -> Node | None:
        """The node with most of the prompt in its cache, unless another one is much less loaded.

        A beginning that is everybody's is not followed to a node that has had more than its share of requests lately.
        """
        for name, depth, is_common in self._index.candidates(flight.route.session, flight.route.chain):
            node = _find(pools, name)
            if node is None or node.free_index < 0 or not _may_serve(node, flight):
                continue
            if is_common and node.lately > max(1.0, FAIR * node.share):
                break
            if node.busy > UNEVEN * node.slots:  # else no other one can be less loaded by that much
                calm = self._least_loaded(pools, flight)
                if calm is not None and node.busy / node.slots - calm.busy / calm.slots > UNEVEN:
                    return calm
            flight.matched = depth
            return node
        return self._least_loaded(pools, flight)

    def _cost(self, node: Node) -> float:
        mean = self._rates.mean
        low, high = SPEED_BOUNDS
        speed = min(max(node.rate_tps / node.slots / mean, low), high) if mean and node.rate_tps else 1.0
        return (node.busy + 1) / (node.slots * speed)

    def _draw(self, pools: Sequence[Pool], flight: Flight) -> Node | None:
        total = _count_free(pools)
        for _ in range(DRAWS if total else 0):
            at = int(self._chance.random() * total)
            for pool in pools:
                if at < len(pool.free):
                    if _may_serve(pool.free[at], flight):
                        return pool.free[at]
                    break
                at -= len(pool.free)
        return None


def _touched(node: Node) -> int:
    return node.touched


def _count_free(pools: Sequence[Pool]) -> int:
    if len(pools) == 1:  # nearly always
        return len(pools[0].free)
    return sum([len(pool.free) for pool in pools])


def _may_serve(node: Node, flight: Flight) -> bool:
    return not flight.barred or (node.id, node.epoch) not in flight.barred


def _first(pools: Sequence[Pool], flight: Flight) -> Node | None:
    return next((node for pool in pools for node in pool.free if _may_serve(node, flight)), None)


def _find(pools: Sequence[Pool], name: str) -> Node | None:
    for pool in pools:
        if node := pool.nodes.get(name):
            return node
    return None
