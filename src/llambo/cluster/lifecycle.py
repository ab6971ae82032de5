"""Nodes from wanted to forgotten: started, checked, suspected, restarted, drained, ended.

1. A node that dies is started again under its id, with the next epoch: at once the first time, then after ever longer
   waits; a node of ours that dies more than `max_crashes` times within the window is given up. A server that somebody
   else runs is never given up.
2. A node that never served and cannot start is forgotten, and whoever wanted it is told why.
3. Serving nodes are checked in turns. One missed check makes a node suspect, several in a row end its process; a lost
   connection is as good as a missed check.
4. Now and then the check is an answer to a fixed prompt. A node that twice answers other than the majority of its
   peers is taken out: ours is started again, another's waits until it agrees.
5. A node that drains gets nothing new; idle, it hands its warm conversations on and ends.

Pure; a hand of `orchestrator`.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice

from llambo.cluster.events import (
    ConversationsMoved,
    ModelAdded,
    ModelRemoved,
    MoveConversations,
    NodeStarted,
    NodeStartFailed,
    NodeWanted,
    ProbeAnswered,
    ProbeFailed,
    ProbeNode,
    SaveCheckpoint,
    StartNode,
    StopNode,
    TellNodeGone,
    TellNodeReady,
)
from llambo.cluster.placement import Placement
from llambo.cluster.state import EMBED, EMBEDDING_TYPE, GENERATE, Change, Model, Node, NodeState
from llambo.cluster.world import Timer, World, serves

LOCAL, ATTACHED = "local", "attach"
BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
AGAIN_S = 1.0
"""Between a missed check, or a wrong answer, and the next look at the node."""
WRONG_ANSWERS = 2
"""So many in a row, since rounding may make one differ."""
MIN_PEERS = 2
"""So many others must agree on another answer before a node is called wrong."""
MAX_PEERS = 64
"""More are not asked: the majority of so many is that of all."""


class Lifecycle:
    """All nodes and the models they serve."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.placement = Placement(world, self._idle)

    # --- models ---------------------------------------------------------------------------------------------------

    def add_model(self, event: ModelAdded) -> None:
        """The model may be asked for; one that is known gets the new options for nodes to come."""
        models = self._world.models
        model = models.get(event.name)
        if model is None:
            models[event.name] = Model(event.name, event.options, event.type, event.pinned, attached=event.attached)
            models[event.name].last_used = self._world.now
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

    def ensure_some(self, model: Model, kind: str) -> None:
        """Starts a first node for requests that wait while there is none: on demand, or up from zero."""
        if model.is_leaving or not any(flight.route.kind == kind for flight in model.queue.one_of_each()):
            return
        pools = [pool for pool in model.pools if kind in pool.kinds]
        if any(pool.coming for pool in pools):
            return
        given_up = next((node for pool in pools for node in pool.nodes.values() if node.is_given_up), None)
        if given_up is not None:
            self.placement.refuse_hopeless(model, *_given_up(given_up))
        elif model.attached:
            self.placement.refuse_hopeless(model)
        else:
            node_type = EMBEDDING_TYPE if kind == EMBED else model.type
            self.want(NodeWanted(model.name, node_type, model.options, kinds=frozenset({kind})))

    def reconsider(self, model: Model) -> None:
        """The nodes of the model are others now: whoever waits gets a first one, or is refused when none will come."""
        if len(model.queue):
            self.ensure_some(model, GENERATE)
            self.ensure_some(model, EMBED)
            self.placement.refuse_hopeless(model)

    # --- birth ----------------------------------------------------------------------------------------------------

    def want(self, event: NodeWanted) -> Node:
        """A node is wanted, so it starts."""
        world = self._world
        number = int(event.id.removeprefix("n")) if event.id else world.new_number()
        world.use_number(number)
        node = Node(f"n{number}", number, event.model, event.type, event.options, event.launcher, event.kinds)
        node.slots, node.ctx = max(1, event.options.slots), event.options.ctx
        world.add_node(node)
        world.say(StartNode(node.id, node.epoch))
        world.publish("node_starting", node=node.id, model=node.model, type=node.type)
        world.say(SaveCheckpoint())
        return node

    def started(self, event: NodeStarted) -> None:
        """The node serves."""
        world = self._world
        node = self._current(event.node, event.epoch)
        if node is None or node.state is NodeState.DEAD:
            world.say(StopNode(event.node, event.epoch, "it is wanted no more"))
        if node is None or node.state is not NodeState.STARTING:
            return
        node.has_served = True
        world.describe(node, max(1, event.slots), event.ctx, node.kinds if event.kinds is None else event.kinds)
        node.missed = node.wrong_answers = 0
        node.answer, node.is_probed = None, False
        world.change(node, Change.STARTED)
        world.publish("node_ready", node=node.id, epoch=node.epoch, model=node.model)
        world.say(TellNodeReady(node.id))
        self._probe_later(node, spread=True)
        self.placement.serve_queue(world.models[node.model])
        self.reconsider(world.models[node.model])

    def start_failed(self, event: NodeStartFailed) -> None:
        """Rules 1 and 2."""
        world = self._world
        node = self._current(event.node, event.epoch)
        if node is None or node.state is not NodeState.STARTING:
            return
        world.publish("node_failed", node=node.id, epoch=node.epoch, reason=event.message)
        if node.has_served:
            world.change(node, Change.FAILED, event.message)
            self._restart_later(node)
        else:
            self._forget(node, event.code, event.message)

    # --- death ----------------------------------------------------------------------------------------------------

    def ended(self, node_id: str, epoch: int, reason: str) -> None:
        """Rule 1: the process is gone."""
        world = self._world
        node = self._current(node_id, epoch)
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
        node = self._current(node_id, epoch)
        if node is not None and node.is_leaving:
            self._forget(node, "", node.reason)

    def kill(self, node: Node, reason: str) -> None:
        """Ends the node for good."""
        world = self._world
        if node.is_leaving:
            return
        node.is_leaving = True
        if node.state is NodeState.DEAD:
            self._forget(node, "node_lost", reason)
            return
        node.busy = 0
        world.change(node, Change.ENDED, reason)
        world.say(StopNode(node.id, node.epoch, reason))
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
        node = self._current(node_id, epoch)
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

    # --- health ---------------------------------------------------------------------------------------------------

    def probe_due(self, node_id: str, epoch: int) -> None:
        """Rules 3 and 4: it is the node's turn, unless another time was set for it since."""
        node = self._current(node_id, epoch)
        if node is not None and self._world.now >= node.next_probe:
            self.probe_now(node)

    def probe_now(self, node: Node) -> None:
        """Has the node checked, unless it is being checked."""
        if node.is_probed or node.state in (NodeState.DEAD, NodeState.STARTING):
            return
        node.is_probed = True
        node.probes += 1
        policy = self._world.policy
        every = max(1, round(policy.probe_interval_s / policy.health_interval_s))
        is_turn = (node.probes + node.number) % every == 0 or node.wrong_answers > 0
        can_answer = GENERATE in node.kinds and node.busy == 0 and node.missed == 0
        self._world.say(ProbeNode(node.id, node.epoch, is_turn and can_answer))

    def suspected(self, node_id: str, epoch: int) -> None:
        """Rule 3: a connection was lost."""
        node = self._current(node_id, epoch)
        if node is not None and serves(node):
            self._world.change(node, Change.MISSED, "a connection to it was lost")
            self._world.publish("node_suspect", node=node.id, reason=node.reason)
            self.probe_now(node)

    def probe_answered(self, event: ProbeAnswered) -> None:
        """The node lives; whether it also answers rightly is rule 4."""
        node = self._current(event.node, event.epoch)
        if node is None or node.state in (NodeState.DEAD, NodeState.STARTING):
            return
        node.is_probed = False
        node.missed = 0
        if event.answer is not None:
            self._judge(node, event.answer)
        if node.state is NodeState.SUSPECT and node.wrong_answers < WRONG_ANSWERS:
            self._world.change(node, Change.ANSWERED)
            self._world.publish("node_ready", node=node.id, epoch=node.epoch, model=node.model)
            self.placement.serve_queue(self._world.models[node.model], node)
            self.reconsider(self._world.models[node.model])
        if node.epoch == event.epoch:  # it was not condemned
            self._probe_later(node, soon=node.wrong_answers > 0)

    def probe_failed(self, event: ProbeFailed) -> None:
        """Rule 3."""
        world = self._world
        node = self._current(event.node, event.epoch)
        if node is None or node.state in (NodeState.DEAD, NodeState.STARTING):
            return
        node.is_probed = False
        node.missed += 1
        if event.is_final or node.missed >= world.policy.health_failures:
            self._condemn(node, event.reason)
            return
        if serves(node):
            world.publish("node_suspect", node=node.id, reason=event.reason)
        world.change(node, Change.MISSED, event.reason)
        self._probe_later(node, soon=True)

    def _judge(self, node: Node, answer: str) -> None:
        """Rule 4."""
        node.answer = answer
        answers = (
            peer.answer
            for pool in self._world.models[node.model].pools
            for peer in pool.nodes.values()
            if peer is not node and peer.answer is not None and serves(peer)
        )
        peers = list(islice(answers, MAX_PEERS))
        most, votes = Counter(peers).most_common(1)[0] if peers else (answer, 0)
        if most == answer or votes < MIN_PEERS or votes * 2 <= len(peers) + 1:
            node.wrong_answers = 0
            return
        node.wrong_answers += 1
        if node.wrong_answers < WRONG_ANSWERS or not serves(node):
            return
        reason = f"its answer to the check differs from that of {votes} peers"
        self._world.publish("node_quarantined", node=node.id, epoch=node.epoch, reason=reason)
        self._world.change(node, Change.QUARANTINED, reason)
        if node.launcher != ATTACHED:
            self._condemn(node, reason)

    def _probe_later(self, node: Node, *, soon: bool = False, spread: bool = False) -> None:
        world, policy = self._world, self._world.policy
        interval = max(policy.health_interval_s, len(world.nodes) / policy.probes_per_s)
        delay = min(interval, AGAIN_S) if soon else interval * (world.chance.random() if spread else 1.0)
        node.next_probe = world.now + delay
        world.at(delay, Timer.PROBE, node.id, node.epoch)

    # --- drain ----------------------------------------------------------------------------------------------------

    def drain(self, node: Node) -> None:
        """Rule 5."""
        world = self._world
        if node.state is NodeState.DRAINING or node.is_leaving:
            return
        if node.state in (NodeState.DEAD, NodeState.STARTING):
            self.kill(node, "it was drained")
            return
        world.change(node, Change.DRAINED)
        world.publish("node_draining", node=node.id, busy=node.busy)
        world.say(SaveCheckpoint())
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

    def _current(self, node_id: str, epoch: int) -> Node | None:
        node = self._world.nodes.get(node_id)
        return node if node is not None and node.epoch == epoch else None


def _given_up(node: Node) -> tuple[str, str]:
    """The error of a request that only a node could serve which will not come back."""
    return "node_lost", f"model {node.model} failed: {node.reason}; FREE it and LOAD it again"
