"""How many nodes a model has: to a number on command, or by its load.

More nodes are started like those that are there; of too many, those that serve nothing go first, then the least busy,
then the newest. Whoever goes is drained.

Pure; a hand of `orchestrator`.
"""

from __future__ import annotations

from dataclasses import replace

from llambo.cluster.autoscaler import LOOK_S, Load, ScalePolicy, decide
from llambo.cluster.events import NodeWanted
from llambo.cluster.lifecycle import Lifecycle
from llambo.cluster.state import ATTACHED, GENERATE, Model, Node, NodeState
from llambo.cluster.world import Timer, World, is_coming, serves

SETTLE_S = 10.0
"""A model without nodes is left alone for so long after it was added, or after a node of it could not start."""


class Scaling:
    """The numbers of nodes."""

    def __init__(self, world: World, lifecycle: Lifecycle) -> None:
        self._world = world
        self._lifecycle = lifecycle
        self.has_begun = False
        """Whether time has had a value."""

    def begin(self) -> None:
        """Time has a value now: the first look is due after one interval, where there are any."""
        self.has_begun = True
        if self._world.policy.auto_scale:
            self._world.at(LOOK_S, Timer.SCALE)

    def scale(self, model: Model, count: int) -> None:
        """Makes it `count` nodes that answer. Of those given up none stays: nobody waits for them."""
        for node in model.nodes():
            if node.is_given_up:
                self._lifecycle.kill(node, "it was given up and is replaced")
        nodes = self._countable(model)
        for _ in range(count - len(nodes)):
            self._lifecycle.want(NodeWanted(model.name, model.type, model.options))
        self._lifecycle.drain(sorted(nodes, key=_usefulness)[: max(0, len(nodes) - count)])

    def look(self) -> None:
        """Scales every model by its load; comes again."""
        world = self._world
        world.at(LOOK_S, Timer.SCALE)
        for model in list(world.models.values()):
            if not model.attached and not model.is_leaving:
                self._look_at(model)

    def _look_at(self, model: Model) -> None:
        world = self._world
        nodes = [node for node in self._countable(model) if is_coming(node)]
        if not nodes and any(node.is_given_up for node in model.nodes()):
            return  # it dies wherever it is started; more of it would not live either
        if not nodes and world.now - max(model.added_at, model.failed_at) < SETTLE_S:
            return  # its nodes are being ordered, or have just been found unable to start
        slots = sum(node.slots for node in model.nodes() if GENERATE in node.kinds and is_coming(node))
        queued = sum(flight.route.kind == GENERATE for flight in model.queue)
        busy = sum(node.busy for node in model.nodes() if serves(node) and GENERATE in node.kinds)
        load = Load(len(nodes), slots, busy, queued)
        target, model.trend = decide(self._policy_for(model, len(nodes)), load, model.trend, world.now)
        if target == len(nodes):
            return
        if target > len(nodes):
            world.totals.scaled_up += 1
        else:
            world.totals.scaled_down += 1
        world.publish("scaled", model=model.name, nodes=len(nodes), target=target, load=round(load.share, 3))
        self.scale(model, target)

    def _policy_for(self, model: Model, nodes: int) -> ScalePolicy:
        """The minimum is the default model's; another one that was unloaded stays so until it is asked for."""
        policy = self._world.policy.scale
        if model is next(iter(self._world.models.values())) and not model.is_unloaded:
            return policy
        return replace(policy, minimum=min(policy.minimum, 1, nodes))

    def _countable(self, model: Model) -> list[Node]:
        """Its nodes of ours for answers that stay, as they are or once they are back.

        Servers that somebody else runs come and go by attach and detach alone.
        """
        return [
            node
            for node in model.nodes()
            if GENERATE in node.kinds
            and node.launcher != ATTACHED
            and not node.is_leaving
            and node.state is not NodeState.DRAINING
        ]


def _usefulness(node: Node) -> tuple[bool, int, int]:
    """Lowest goes first."""
    return serves(node), node.busy, -node.number
