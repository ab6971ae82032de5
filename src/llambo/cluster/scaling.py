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


class Scaling:
    """The numbers of nodes."""

    def __init__(self, world: World, lifecycle: Lifecycle) -> None:
        self._world = world
        self._lifecycle = lifecycle
        if world.policy.auto_scale:
            world.at(LOOK_S, Timer.SCALE)

    def scale(self, model: Model, count: int) -> None:
        """Makes it `count` nodes that answer. Of those given up none stays: nobody waits for them."""
        for node in model.nodes():
            if node.is_given_up:
                self._lifecycle.kill(node, "it was given up and is replaced")
        nodes = self._countable(model)
        for _ in range(count - len(nodes)):
            self._lifecycle.want(NodeWanted(model.name, model.type, model.options))
        for node in sorted(nodes, key=_usefulness)[: max(0, len(nodes) - count)]:
            self._lifecycle.drain(node)

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
        slots = sum(node.slots for node in nodes)
        queued = sum(flight.route.kind == GENERATE for flight in model.queue)
        load = Load(len(nodes), slots, sum(node.busy for node in nodes if serves(node)), queued)
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
        if model is next(iter(self._world.models.values())):
            return policy
        return replace(policy, minimum=min(policy.minimum, 1, nodes))

    def _countable(self, model: Model) -> list[Node]:
        """Its nodes for answers that stay, as they are or once they are back."""
        return [
            node
            for node in model.nodes()
            if GENERATE in node.kinds and not node.is_leaving and node.state is not NodeState.DRAINING
        ]


def _usefulness(node: Node) -> tuple[bool, bool, int, int]:
    """Lowest goes first. Nobody else's server is let go while there is a node of ours."""
    return node.launcher == ATTACHED, serves(node), node.busy, -node.number
