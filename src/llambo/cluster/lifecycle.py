"""Nodes from wanted to forgotten: started, restarted, drained, ended. Whether they are well is `health`'s.

1. A node that dies is started again under its id, with the next epoch: at once the first time, then after ever longer
   waits; a node of ours that dies more than `max_crashes` times within the window is given up. A server that somebody
   else runs is never given up.
2. A node that never served and cannot start is forgotten, and whoever wanted it is told why.
3. A node that drains gets nothing new; idle, it hands its warm conversations on and ends.

Pure; a hand of `orchestrator`.
"""

from __future__ import annotations

from llambo.cluster.events import (
    ConversationsMoved,
    ModelAdded,
    ModelRemoved,
    MoveConversations,
    NodeStarted,
    NodeStartFailed,
    NodeWanted,
    SaveCheckpoint,
    StartNode,
    StopNode,
    TellNodeGone,
    TellNodeReady,
)
from llambo.cluster.health import Health
from llambo.cluster.placement import Placement
from llambo.cluster.state import (
    ATTACHED,
    EMBED,
    GENERATE,
    LOCAL,
    RERANK,
    TYPE_OF_KIND,
    Change,
    Model,
    Node,
    NodeState,
    Pool,
)
from llambo.cluster.world import Timer, World, serves

BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


class Lifecycle:
    """All nodes and the models they serve."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.placement = Placement(world, self._idle)
        self.health = Health(world, self._condemn, self._well_again)

    # --- models ---------------------------------------------------------------------------------------------------

    def add_model(self, event: ModelAdded) -> None:
        """The model may be asked for; one that is known gets the new options for nodes to come."""
        models = self._world.models
        model = models.get(event.name)
        if model is None:
            models[event.name] = Model(event.name, event.options, event.type, event.pinned, attached=event.attached)
            models[event.name].last_used = models[event.name].added_at = self._world.now
            self._world.publish("model_added", model=event.name)
        else:
            model.options, model.type, model.pinned = event.options, event.type, event.pinned
            model.attached = event.attached and (model.attached or model.is_leaving)
            model.is_leaving = False  # what it had ends all the same
        self._world.say(SaveCheckpoint())

    def remove_model(self, event: ModelRemoved) -> None:
        """Its nodes end now, its requests with them; the model is forgotten with its last node."""
        model = self._world.models.get(event.name)
        if model is None:
            return
        model.is_leaving = True
        self.placement.refuse_all(model, "no_model", f"model {model.name} was freed")
        self.placement.disown(model)
        for node in model.nodes():
            self.kill(node, event.reason)
        self._forget_if_empty(model)
        self._world.say(SaveCheckpoint())

    def unload_model(self, name: str) -> None:
        """The model makes room."""
        model = self._world.models.get(name)
        if model is not None:
            model.is_unloaded = True
            for node in model.nodes():
                self.kill(node, "its model made room for another")

    def ensure_some(self, model: Model, kind: str) -> None:
        """Starts a first node for requests that wait while there is none: on demand, or up from zero."""
        if model.is_leaving or not any(flight.route.kind == kind for flight in model.queue.one_of_each()):
            return
        pools = [pool for pool in model.pools if kind in pool.kinds]
        if any(pool.coming for pool in pools) and not self._is_left_alone(model, pools):
            return
        given_up = next((node for pool in pools for node in pool.nodes.values() if node.is_given_up), None)
        if given_up is not None:
            self.placement.refuse_hopeless(model, *_given_up(given_up))
        elif model.attached:
            self.placement.refuse_hopeless(model)
        else:
            node_type = TYPE_OF_KIND.get(kind, model.type)
            self.want(NodeWanted(model.name, node_type, model.options, kinds=frozenset({kind}), is_on_demand=True))

    def _is_left_alone(self, model: Model, pools: list[Pool]) -> bool:
        """Whether a model of ours has nothing but servers of others, and those are gone."""
        nodes = [node for pool in pools for node in pool.nodes.values() if node.is_coming]
        return not model.attached and all(n.launcher == ATTACHED and n.state is NodeState.DEAD for n in nodes)

    def reconsider(self, model: Model) -> None:
        """The nodes of the model are others now: whoever waits gets a first one, or is refused when none will come."""
        if len(model.queue):
            self.ensure_some(model, GENERATE)
            self.ensure_some(model, EMBED)
            self.ensure_some(model, RERANK)
            self.placement.refuse_hopeless(model)

    # --- birth ----------------------------------------------------------------------------------------------------

    def want(self, event: NodeWanted) -> Node:
        """A node is wanted, so it starts."""
        world = self._world
        number = int(event.id.removeprefix("n")) if event.id else world.new_number()
        world.use_number(number)
        node = Node(f"n{number}", number, event.model, event.type, event.options, event.launcher, event.kinds)
        node.slots, node.ctx = max(1, event.options.slots), event.options.ctx
        node.has_served, node.is_on_demand = event.is_known, event.is_on_demand
        world.models[event.model].is_unloaded = False
        world.add_node(node)
        world.say(StartNode(node.id, node.epoch))
        world.publish("node_starting", node=node.id, model=node.model, type=node.type)
        world.say(SaveCheckpoint())
        return node

    def started(self, event: NodeStarted) -> None:
        """The node serves."""
        world = self._world
        node = self._world.current(event.node, event.epoch)
        if node is None or node.state is NodeState.DEAD:
            world.say(StopNode(event.node, event.epoch, "it is wanted no more"))
        if node is None or node.state is not NodeState.STARTING:
            return
        node.has_served = True
        world.describe(node, max(1, event.slots), event.ctx, node.kinds if event.kinds is None else event.kinds)
        node.likeness = event.likeness
        node.missed = node.wrong_answers = 0
        node.answer, node.is_probed = None, False
        world.change(node, Change.STARTED)
        world.publish("node_ready", node=node.id, epoch=node.epoch, model=node.model)
        world.say(TellNodeReady(node.id))
        self.health.probe_later(node, spread=True)
        self.placement.serve_queue(world.models[node.model])
        self.reconsider(world.models[node.model])

    def start_failed(self, event: NodeStartFailed) -> None:
        """Rules 1 and 2."""
        world = self._world
        node = self._world.current(event.node, event.epoch)
        if node is None or node.state is not NodeState.STARTING:
            return
        world.publish("node_failed", node=node.id, epoch=node.epoch, reason=event.message)
        world.models[node.model].failed_at = world.now
        if node.has_served:
            world.change(node, Change.FAILED, event.message)
            world.say(TellNodeGone(node.id, event.code, event.message))  # who waits for it has waited for this try
            self._restart_later(node)
        else:
            self._forget(node, event.code, event.message)

    # --- death ----------------------------------------------------------------------------------------------------

    def ended(self, node_id: str, epoch: int, reason: str) -> None:
        """Rule 1: the process is gone."""
        world = self._world
        node = self._world.current(node_id, epoch)
        if node is None or node.state is NodeState.DEAD:
            return
        was_draining = node.state is NodeState.DRAINING
        node.busy = 0
        world.index.forget(node.id)
        world.change(node, Change.ENDED, reason)
        world.publish("node_dead", node=node.id, epoch=epoch, reason=reason)
        if was_draining or node.is_leaving:
            self._forget(node, "", reason)
        else:
            self._restart_later(node)

    def stopped(self, node_id: str, epoch: int) -> None:
        """A process that was to end has: a node that was leaving is forgotten."""
        node = self._world.current(node_id, epoch)
        if node is not None and node.is_leaving:
            self._forget(node, "", node.reason)

    def kill(self, node: Node, reason: str) -> None:
        """Ends the node for good."""
        world = self._world
        if node.is_leaving:
            return
        node.is_leaving = True
        if node.state is NodeState.DEAD:
            world.pool_of(node).refresh(node)
        else:
            node.busy = 0
            world.change(node, Change.ENDED, reason)
        world.say(StopNode(node.id, node.epoch, reason))  # also of a dead one: its process may still be ending
        world.say(SaveCheckpoint())
        self.reconsider(world.models[node.model])

    def restart(self, node: Node) -> None:
        """A new process for the node, and a clean record."""
        if node.is_leaving:
            return
        node.deaths, node.is_given_up = (), False
        if node.state is not NodeState.DEAD:
            self._condemn(node, "it was restarted on command")
        else:
            self._begin_again(node)

    def restart_due(self, node_id: str, epoch: int) -> None:
        """The wait before a restart is over."""
        node = self._world.current(node_id, epoch)
        if node is not None and node.state is NodeState.DEAD and not node.is_given_up and not node.is_leaving:
            self._begin_again(node)

    def _begin_again(self, node: Node) -> None:
        world = self._world
        world.change(node, Change.RESTARTED)
        node.epoch += 1
        world.totals.restarts += 1
        world.publish("node_starting", node=node.id, epoch=node.epoch, model=node.model, type=node.type)
        world.say(StartNode(node.id, node.epoch))

    def _restart_later(self, node: Node) -> None:
        """Rule 1. The node is dead."""
        world, policy = self._world, self._world.policy
        node.deaths = (*(at for at in node.deaths if world.now - at < policy.crash_window_s), world.now)
        count = len(node.deaths)
        if node.launcher != ATTACHED and count > policy.max_crashes:
            node.is_given_up = True
            world.pool_of(node).refresh(node)
            node.reason = f"its node died {count} times in a minute ({node.reason})"
            world.publish("node_given_up", node=node.id, reason=node.reason)
            world.say(TellNodeGone(node.id, "node_lost", f"model {node.model} failed: {node.reason}"))
            self.placement.refuse_hopeless(world.models[node.model], *_given_up(node))
            return
        waits = count if node.launcher == ATTACHED else count - 1  # ours comes back at once the first time
        delay = min(MAX_BACKOFF_S, BACKOFF_S * 2 ** (waits - 1)) if waits else 0.0
        if delay:
            world.at(delay, Timer.RESTART, node.id, node.epoch)
        else:
            self._begin_again(node)

    def _condemn(self, node: Node, reason: str) -> None:
        """Ends the process of a node that is wanted, but not as it is."""
        self._world.say(StopNode(node.id, node.epoch, reason))
        self.ended(node.id, node.epoch, reason)

    def _well_again(self, node: Node) -> None:
        self._world.say(TellNodeReady(node.id))
        self.placement.serve_queue(self._world.models[node.model], node)
        self.reconsider(self._world.models[node.model])

    # --- drain ----------------------------------------------------------------------------------------------------

    def drain(self, nodes: list[Node]) -> None:
        """Rule 3. All of them are going before any hands something on, so that none takes what it cannot keep."""
        world = self._world
        draining: list[Node] = []
        for node in nodes:
            if node.state is NodeState.DRAINING or node.is_leaving:
                continue
            if node.state in (NodeState.DEAD, NodeState.STARTING):
                self.kill(node, "it was drained")
                continue
            world.change(node, Change.DRAINED)
            world.publish("node_draining", node=node.id, busy=node.busy)
            draining.append(node)
        world.say(SaveCheckpoint())
        for node in draining:
            if node.busy == 0:
                self._idle(node)
            self.reconsider(world.models[node.model])

    def moved(self, event: ConversationsMoved) -> None:
        """The warm conversations are elsewhere; now the node may end."""
        node = self._world.nodes.get(event.source)
        if node is None or node.state is not NodeState.DRAINING:
            return
        if event.moved and event.target in self._world.nodes:
            self._world.index.move(event.source, event.target)
        self.kill(node, "it was drained")

    def _idle(self, node: Node) -> None:
        pool = self._world.pool_of(node)
        alike = [other for other in pool.nodes.values() if serves(other) and other.options == node.options]
        if node.launcher == LOCAL and GENERATE in node.kinds and alike:
            target = min(alike, key=lambda other: (other.busy, other.number))
            self._world.say(MoveConversations(node.id, target.id))
        else:
            self.kill(node, "it was drained")

    # --- the end --------------------------------------------------------------------------------------------------

    def _forget(self, node: Node, code: str, message: str) -> None:
        world = self._world
        model = world.models[node.model]
        world.remove_node(node)
        world.publish("node_gone", node=node.id, reason=message)
        world.say(TellNodeGone(node.id, code, message))
        world.say(SaveCheckpoint())
        if code:
            self.placement.refuse_hopeless(model, code, message)
        self.reconsider(model)
        self._forget_if_empty(model)

    def _forget_if_empty(self, model: Model) -> None:
        is_known = self._world.models.get(model.name) is model
        if is_known and not model.pools and (model.is_leaving or model.attached):
            self.placement.refuse_all(model, "no_model", f"model {model.name} was freed")
            self.placement.disown(model)
            del self._world.models[model.name]
            self._world.publish("model_removed", model=model.name)


def _given_up(node: Node) -> tuple[str, str]:
    """The error of a request that only a node could serve which will not come back."""
    return "node_lost", f"model {node.model} failed: {node.reason}; FREE it and LOAD it again"
