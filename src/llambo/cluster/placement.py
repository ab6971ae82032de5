"""Requests: admitted, placed, queued, tried again elsewhere, and ended, each exactly once.

1. A request for a model goes to a free node that may serve it, as the balancer chooses.
2. With none free it waits: in its session's lane, while the queue has room, until its deadline.
3. A freed slot goes to the lanes in turn; with prefix-affinity a request whose conversation is warm on the freed node,
   and whose session waits for nothing else, may overtake others for as long as whose turn it is has not waited for
   `PATIENCE_S`.
4. A node that fails a request is barred for it; the request goes to another, at most `max_retries` times.
5. A request that no node can serve any more is refused at once, with the last reason.

Pure; a hand of `orchestrator`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from llambo.cluster.balancer import PREFIX_AFFINITY
from llambo.cluster.events import (
    PlaceRequest,
    RefuseRequest,
    RequestBroken,
    RequestFinished,
)
from llambo.cluster.prefix import CUTS
from llambo.cluster.state import EMBED, POOLING_TYPES, RERANK, TYPE_OF_KIND, Flight, Model, Node, NodeState, Pool, Route
from llambo.cluster.world import Timer, World, serves

PATIENCE_S = 1.0
EARLY_LOSSES = 2
"""A request that so many nodes did not survive, before any gave a token, is what kills them: it gets no third one."""
RATE_TOKENS = 8
"""An answer shorter than this says nothing about a node's speed."""
RATE_MEMORY = 0.8
"""How much of the old rate each new measurement keeps."""


class Placement:
    """All requests. `on_idle` is told when a node that drains has nothing left."""

    def __init__(self, world: World, on_idle: Callable[[Node], None]) -> None:
        self._world = world
        self._on_idle = on_idle

    def arrived(self, route: Route) -> None:
        """Rules 1 and 2."""
        world = self._world
        world.totals.requests += 1
        flight = Flight(route, world.now, world.now + world.policy.queue_timeout_s)
        model = world.models.get(route.model)
        if model is None or model.is_leaving:
            known = ", ".join(world.models) or "none"
            self._refuse(flight, "not_found", f"no model is called {route.model!r}; loaded are {known}")
            return
        world.flights[route.id] = flight
        model.in_flight += 1
        model.last_used = world.now
        if route.node_type and self._asks_for_no_type(model, flight):
            types = sorted({pool.type for pool in model.pools if pool.type not in POOLING_TYPES} or {model.type})
            self._end(flight)
            self._refuse(
                flight, "bad_request", f"no {route.node_type!r} node has {model.name}; there are {', '.join(types)}"
            )
        elif not self._place(model, flight):
            self._wait(model, flight)

    def finished(self, event: RequestFinished) -> None:
        """An answer is whole: its slot is free, and its node is known to be warm and how fast it is."""
        world = self._world
        flight = world.flights.get(event.id)
        if flight is None or flight.node is None:
            return
        node, totals = flight.node, world.totals
        totals.finished += 1
        totals.tokens += event.tokens
        totals.prompt_tokens += event.prompt_tokens
        totals.cached_tokens += event.cached_tokens
        if node.epoch == flight.epoch and node.id in world.nodes:
            self._learn(node, flight, event)
        self._end(flight)

    def failed(self, request_id: int) -> None:
        """The request ended with an error of its own."""
        if flight := self._world.flights.get(request_id):
            self._world.totals.failed += 1
            self._end(flight)

    def gone(self, request_id: int) -> None:
        """The caller left."""
        if flight := self._world.flights.get(request_id):
            self._world.totals.cancelled += 1
            self._end(flight)

    def broken(self, event: RequestBroken) -> None:
        """Rules 4 and 5."""
        world = self._world
        flight = world.flights.get(event.id)
        if flight is None or flight.node is None:
            return
        node, epoch = flight.node, flight.epoch
        node.errors += event.kind != "too_long"  # that is the prompt's fault
        flight.barred |= {(node.id, epoch)}
        flight.has_delivered |= event.has_delivered
        flight.last_error = (event.code, event.message)
        if event.kind == "too_long":
            flight.min_ctx = node.ctx + 1
        self._leave_node(flight)
        if event.kind == "lost" and not event.has_delivered:
            flight.early_losses += 1
            if flight.early_losses >= EARLY_LOSSES:
                words = f"{flight.early_losses} nodes died as they began with this request; it is not tried on another"
                flight.last_error = (event.code, words)
                self._refuse_last(flight, None)
                return
        model = world.models.get(flight.route.model)
        has_tries = flight.attempts <= world.policy.max_retries and not flight.is_orphan
        if model is None or not has_tries or not self._has_hope(model, flight):
            self._refuse_last(flight, node)
            return
        if flight.has_delivered:
            world.totals.failovers += 1
            world.publish("failover", node=node.id, model=model.name)
        else:
            world.totals.retries += 1
            world.publish("retry", node=node.id, model=model.name, reason=event.message)
        flight.deadline = world.now + world.policy.queue_timeout_s
        if not self._place(model, flight):
            self._wait(model, flight, front=True)

    def expire(self, request_id: int) -> None:
        """A deadline has come: whoever waits still has waited too long."""
        world = self._world
        flight = world.flights.get(request_id)
        if flight is None or flight.node is not None:
            return
        if flight.deadline > world.now:  # it was placed, broken and queued again meanwhile
            world.at(flight.deadline - world.now, Timer.DEADLINE, request_id)
            return
        model = world.models[flight.route.model]
        total = sum(pool.slots for pool in self._eligible(model, flight))
        limit = f"{world.policy.queue_timeout_s:g} s"
        why = f"all {total} are busy" if total else f"no node of model {model.name} was ready"
        model.queue.remove(flight)
        self._end(flight)
        self._refuse(flight, "timeout", f"no slot came free within {limit}; {why}")

    def serve_queue(self, model: Model, freed: Node | None = None) -> None:
        """Rule 3: places whoever waits and can go."""
        if freed is not None and len(model.queue) and self._is_patient(model):
            warm = model.queue.pop_first(lambda flight: model.queue.is_alone(flight) and self._prefers(flight, freed))
            if warm is not None and not self._place(model, warm):
                model.queue.push(warm, front=True)
        full: set[Hashable] = set()  # demands for which no node is free

        def can_go(flight: Flight) -> bool:
            if flight.demand in full:
                return False
            if self._place(model, flight):
                return True
            if not flight.barred:
                full.add(flight.demand)
            return False

        while len(model.queue) and any(pool.free for pool in model.pools) and model.queue.pop_first(can_go):
            pass  # a request that can go has been placed

    def disown(self, model: Model) -> None:
        """The model is going: what is on its nodes ends there, also when another of that name comes meanwhile."""
        model.in_flight = 0
        for flight in self._world.flights.values():
            if flight.route.model == model.name:
                flight.is_orphan = True

    def refuse_hopeless(self, model: Model, code: str = "", message: str = "") -> None:
        """Rule 5, for those who wait; the error is the given one where a request has none of its own."""
        for flight in [flight for flight in model.queue if not self._has_hope(model, flight)]:
            model.queue.remove(flight)
            flight.last_error = (code, message) if code else flight.last_error
            self._refuse_last(flight, None)

    def refuse_all(self, model: Model, code: str, message: str) -> None:
        """Sends everybody away who waits for a model that is going."""
        for flight in model.queue.clear():
            self._end(flight)
            self._refuse(flight, code, message)

    # --- inside ---------------------------------------------------------------------------------------------------

    def _place(self, model: Model, flight: Flight) -> bool:
        world = self._world
        node = world.balancer.choose(self._eligible(model, flight), flight)
        if node is None:
            return False
        flight.node, flight.epoch, flight.placed_at = node, node.epoch, world.now
        flight.attempts += 1
        world.totals.placed += 1
        world.take_slot(node)
        world.say(PlaceRequest(flight.route.id, node.id, node.epoch))
        return True

    def _wait(self, model: Model, flight: Flight, *, front: bool = False) -> None:
        world = self._world
        nodes = sum(pool.coming for pool in self._eligible(model, flight))
        if not front and len(model.queue) >= world.policy.queue_limit * max(1, nodes):
            self._end(flight)
            self._refuse(flight, "overloaded", f"{len(model.queue)} requests wait already, and the queue holds no more")
            return
        model.queue.push(flight, front=front)
        world.at(flight.deadline - world.now, Timer.DEADLINE, flight.route.id)

    def _eligible(self, model: Model, flight: Flight) -> list[Pool]:
        route = flight.route
        return [
            pool
            for pool in model.pools
            if route.kind in pool.kinds
            and (not route.node_type or pool.type == route.node_type)
            and (not flight.min_ctx or pool.ctx >= flight.min_ctx)
        ]

    def _has_hope(self, model: Model, flight: Flight) -> bool:
        """Whether some node may come to serve the request: another one, or the same after a restart."""
        pools = [pool for pool in self._eligible(model, flight) if pool.coming]
        if not flight.barred:
            return bool(pools)
        return any(
            node.is_coming and not (serves(node) and (node.id, node.epoch) in flight.barred)
            for pool in pools
            for node in pool.nodes.values()
        )

    def _asks_for_no_type(self, model: Model, flight: Flight) -> bool:
        """Whether the type of node that the request wants is one that the model neither has nor would get."""
        wanted = flight.route.node_type
        if self._eligible(model, flight):
            return False
        return bool(model.pools) or wanted != TYPE_OF_KIND.get(flight.route.kind, model.type)

    def _is_patient(self, model: Model) -> bool:
        """Whether those in front may be overtaken."""
        if self._world.balancer.strategy != PREFIX_AFFINITY:
            return False
        first = model.queue.first()
        return first is not None and self._world.now - first.arrived < PATIENCE_S

    def _prefers(self, flight: Flight, node: Node) -> bool:
        return self._world.index.best(flight.route.session, flight.route.chain) == node.id

    def _learn(self, node: Node, flight: Flight, event: RequestFinished) -> None:
        world, route = self._world, flight.route
        if flight.matched and event.prompt_tokens and route.size_chars:
            expected = CUTS[flight.matched - 1] / route.size_chars
            if event.cached_tokens / event.prompt_tokens < expected / 2:
                world.index.missed(node.id, route.chain, flight.matched)
        world.index.computed(node.id, route.session, event.chain)
        if event.tokens >= RATE_TOKENS and event.decode_s > 0:
            old, new = node.rate_tps, event.tokens / event.decode_s * max(1, node.busy)
            world.measure(node, RATE_MEMORY * old + (1 - RATE_MEMORY) * new if old else new)

    def _leave_node(self, flight: Flight) -> None:
        node, flight.node = flight.node, None
        if node is None or node.id not in self._world.nodes:
            return
        if not self._world.give_slot(node, flight.epoch):
            return
        if node.state is NodeState.DRAINING and node.busy == 0:
            self._on_idle(node)
        elif node.free_index >= 0 and len(self._world.models[node.model].queue):
            self.serve_queue(self._world.models[node.model], node)

    def _end(self, flight: Flight) -> None:
        """The request is over, wherever it was."""
        world = self._world
        if world.flights.pop(flight.route.id, None) is None:
            return
        model = world.models.get(flight.route.model)
        if model is not None and not flight.is_orphan:
            model.in_flight -= 1
            model.last_used = world.now
            if flight.node is None:
                model.queue.remove(flight)
        self._leave_node(flight)

    def _refuse(self, flight: Flight, code: str, message: str) -> None:
        self._world.totals.failed += 1
        self._world.say(RefuseRequest(flight.route.id, code, message))

    def _refuse_last(self, flight: Flight, node: Node | None) -> None:
        """Refuses with the last failure, and with the reason of the node's end where that is what it was."""
        code, message = flight.last_error
        if node is None and not code:
            kind = {EMBED: "for embeddings ", RERANK: "for ranking "}.get(flight.route.kind, "")
            code, message = "node_lost", f"no node {kind}of model {flight.route.model} is left"
        elif node is not None and code == "node_lost" and node.reason:
            message = f"node {node.id} of model {flight.route.model} is gone: {node.reason}"
        self._end(flight)
        self._refuse(flight, code, message)
