"""Drives an orchestrator by hand, remembers what it commanded, and checks the rules that hold at every moment."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from llambo.cluster.events import (
    Command,
    Event,
    ModelAdded,
    NodeEnded,
    NodeStarted,
    NodeWanted,
    PlaceRequest,
    ProbeNode,
    Publish,
    RefuseRequest,
    RequestArrived,
    RequestBroken,
    RequestFinished,
    StartNode,
    StopNode,
    TellNodeGone,
    Ticked,
)
from llambo.cluster.orchestrator import Orchestrator
from llambo.cluster.state import GENERATE, SERVING, Node, NodeState, Pool, Route
from llambo.cluster.world import Policy
from llambo.core.types import LoadOptions

C = TypeVar("C")
M = "m"


class Driver:
    """One orchestrator with model "m" (of type "medium"), a clock, and what was said so far."""

    def __init__(self, policy: Policy | None = None, *, seed: int = 1, model: bool = True) -> None:
        self.orchestrator = Orchestrator(policy or Policy(strategy="least-loaded"), random.Random(seed))
        self.world = self.orchestrator.world
        self.now = 100.0
        self.placed: dict[int, tuple[str, int]] = {}
        self.refused: dict[int, tuple[str, str]] = {}
        self.requests = 0
        self.said: list[Command] = []
        if model:
            self.tell(ModelAdded(M, LoadOptions(slots=2, ctx=1000), "medium"))

    # --- what happens -----------------------------------------------------------------------------------------------

    def tell(self, event: Event) -> list[Command]:
        """Tells it, and keeps what it said."""
        self.said = self.orchestrator.handle(event, self.now)
        for command in self.said:
            if isinstance(command, PlaceRequest):
                assert command.id not in self.placed, "a request was placed twice"
                assert command.id not in self.refused, "a request was placed after its end"
                self.placed[command.id] = (command.node, command.epoch)
            elif isinstance(command, RefuseRequest):
                assert command.id not in self.placed, "a request was refused while a node had it"
                assert command.id not in self.refused, "a request was refused twice"
                self.refused[command.id] = (command.code, command.message)
        return self.said

    def all_said(self, kind: type[C]) -> list[C]:
        """The commands of that kind in the last answer."""
        return [command for command in self.said if isinstance(command, kind)]

    def published(self) -> list[str]:
        return [command.kind for command in self.all_said(Publish)]

    def after(self, seconds: float) -> list[Command]:
        """Lets time pass, timer by timer; gives everything that was said."""
        end, said = self.now + seconds, []
        while (wake := self.orchestrator.wake_at) is not None and wake <= end:
            self.now = max(self.now, wake)
            said += self.tell(Ticked())
        self.now = end
        self.said = said + self.tell(Ticked())
        return self.said

    def want(
        self, slots: int = 1, *, type: str = "medium", ctx: int = 1000, launcher: str = "local", kind: str = GENERATE
    ) -> str:
        """A node that starts; gives its id."""
        self.tell(NodeWanted(M, type, LoadOptions(slots=slots, ctx=ctx), launcher, frozenset({kind})))
        return self.all_said(StartNode)[0].node

    def start(self, node: str) -> None:
        """The node's process is ready."""
        found = self.node(node)
        self.tell(NodeStarted(node, found.epoch, found.options.slots, found.options.ctx))

    def serve(self, slots: int = 1, *, type: str = "medium", ctx: int = 1000, launcher: str = "local") -> str:
        """A node that serves; gives its id."""
        node = self.want(slots, type=type, ctx=ctx, launcher=launcher)
        self.start(node)
        return node

    def end(self, node: str, reason: str = "killed by signal 9") -> None:
        """The node's process dies."""
        self.tell(NodeEnded(node, self.node(node).epoch, reason))

    def ask(self, **route: object) -> int:
        """A request arrives; gives its number."""
        self.requests += 1
        self.tell(RequestArrived(Route(self.requests, **{"model": M, **route})))  # type: ignore[arg-type]
        return self.requests

    def finish(self, request: int, **figures: object) -> None:
        """The request's answer is whole."""
        del self.placed[request]
        self.tell(RequestFinished(request, **figures))  # type: ignore[arg-type]

    def fail(self, request: int, kind: str = "failed", *, delivered: bool = False) -> None:
        """The node fails the request."""
        code = {"lost": "node_lost", "failed": "engine_failed", "too_long": "prompt_too_long"}[kind]
        del self.placed[request]
        self.tell(RequestBroken(request, kind, code, f"it {kind}", delivered))  # type: ignore[arg-type]

    # --- what is so -------------------------------------------------------------------------------------------------

    def node(self, node: str) -> Node:
        return self.world.nodes[node]

    def state(self, node: str) -> str:
        return self.node(node).state.value if node in self.world.nodes else "gone"

    def where(self, request: int) -> str:
        """The node that has the request, or "queued", or the code of its refusal, or "ended"."""
        if request in self.placed:
            return self.placed[request][0]
        if request in self.refused:
            return self.refused[request][0]
        return "queued" if request in self.world.flights else "ended"

    def started(self) -> list[tuple[str, int]]:
        return [(command.node, command.epoch) for command in self.all_said(StartNode)]

    def stopped(self) -> list[tuple[str, int]]:
        return [(command.node, command.epoch) for command in self.all_said(StopNode)]

    def probed(self) -> list[tuple[str, bool]]:
        return [(command.node, command.end_to_end) for command in self.all_said(ProbeNode)]

    def gone(self) -> dict[str, str]:
        return {command.node: command.code for command in self.all_said(TellNodeGone)}


def check(driver: Driver, open_requests: Iterable[int]) -> None:
    """The rules of orchestrator.py, and that every count is what it counts."""
    world = driver.world
    queued = Counter(flight.route.id for model in world.models.values() for flight in model.queue)
    on_node = {number for number, flight in world.flights.items() if flight.node is not None}
    assert all(count == 1 for count in queued.values()), "a request waits twice"
    assert not on_node & set(queued), "a request is on a node and waits"
    assert on_node | set(queued) == set(world.flights) == set(open_requests), "a request is nowhere, or lives on"
    assert on_node == set(driver.placed), "what is on nodes is not what was placed"
    busy = Counter((flight.node.id, flight.epoch) for flight in world.flights.values() if flight.node is not None)
    in_pools: list[Node] = []
    for model in world.models.values():
        assert len(model.queue) == len(list(model.queue))
        for pool in model.pools:
            assert pool.nodes, "an empty pool stays"
            in_pools += pool.nodes.values()
            check_pool(pool)
    assert sorted(node.id for node in in_pools) == sorted(world.nodes)
    for node in world.nodes.values():
        has_process = node.state not in (NodeState.DEAD, NodeState.STARTING)
        assert node.busy == (busy[node.id, node.epoch] if has_process else 0), f"{node.id} miscounts its requests"
        assert node.busy <= node.slots
        assert (node.state is NodeState.BUSY) <= (node.busy == node.slots)
        assert (node.state is NodeState.READY) <= (node.busy < node.slots)
    orphans = Counter(flight.route.model for flight in world.flights.values() if not flight.is_orphan)
    for model in world.models.values():
        assert model.in_flight == orphans[model.name]


def check_pool(pool: Pool) -> None:
    """A pool's free nodes and counts."""
    nodes = list(pool.nodes.values())
    free = [node for node in nodes if node.state is NodeState.READY and node.busy < node.slots]
    listed = pool.free
    assert sorted(node.id for node in listed) == sorted(node.id for node in free)
    assert sorted(pool.rotation) == sorted(node.id for node in free)
    assert [node.free_index for node in listed] == list(range(len(listed)))
    assert all(node.free_index == -1 for node in nodes if node not in free)
    assert pool.coming == sum(node.is_coming for node in nodes)
    assert pool.slots == sum(node.slots for node in nodes if node.state in SERVING)
    for node in nodes:
        assert node.pool is pool
        assert (node.type, node.kinds, node.ctx) == (pool.type, pool.kinds, pool.ctx)
