"""Whether nodes are well: checked in turns, suspected, found to answer wrongly.

1. Serving nodes are checked in turns. One missed check makes a node suspect, several in a row end its process; a lost
   connection is as good as a missed check.
2. Now and then the check is an answer to a fixed prompt. A node that twice answers other than the majority of its
   peers (of its pool, reached in the same way) is taken out: ours is started again, another's waits until it agrees.

Pure; a hand of `orchestrator`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

from llambo.cluster.events import ProbeAnswered, ProbeFailed, ProbeNode
from llambo.cluster.state import ATTACHED, GENERATE, Change, Node, NodeState
from llambo.cluster.world import Timer, World, serves

AGAIN_S = 1.0
"""Between a missed check, or a wrong answer, and the next look at the node."""
WRONG_ANSWERS = 2
"""So many in a row, since rounding may make one differ."""
MIN_PEERS = 2
"""So many others must agree on another answer before a node is called wrong."""
MAX_PEERS = 64
"""More are not asked: the majority of so many is that of all."""


class Health:
    """All checks. `on_failed` ends a node's process for a reason; `on_well` is told of one that serves again."""

    def __init__(self, world: World, on_failed: Callable[[Node, str], None], on_well: Callable[[Node], None]) -> None:
        self._world = world
        self._on_failed = on_failed
        self._on_well = on_well

    def probe_due(self, node_id: str, epoch: int) -> None:
        """It is the node's turn, unless another time was set for it since."""
        node = self._world.current(node_id, epoch)
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
        """Rule 1: a connection was lost."""
        node = self._world.current(node_id, epoch)
        if node is not None and serves(node):
            self._world.change(node, Change.MISSED, "a connection to it was lost")
            self._world.publish("node_suspect", node=node.id, reason=node.reason)
            self.probe_now(node)

    def probe_answered(self, event: ProbeAnswered) -> None:
        """The node lives; whether it also answers rightly is rule 2."""
        node = self._world.current(event.node, event.epoch)
        if node is None or node.state in (NodeState.DEAD, NodeState.STARTING):
            return
        node.is_probed = False
        node.missed = 0
        if event.answer is not None:
            self._judge(node, event.answer)
        if node.state is NodeState.SUSPECT and node.wrong_answers < WRONG_ANSWERS:
            self._world.change(node, Change.ANSWERED)
            self._world.publish("node_ready", node=node.id, epoch=node.epoch, model=node.model)
            self._on_well(node)
        if node.epoch == event.epoch:  # it was not condemned
            self.probe_later(node, soon=node.wrong_answers > 0)

    def probe_failed(self, event: ProbeFailed) -> None:
        """Rule 1."""
        world = self._world
        node = self._world.current(event.node, event.epoch)
        if node is None or node.state in (NodeState.DEAD, NodeState.STARTING):
            return
        node.is_probed = False
        node.missed += 1
        if node.missed >= world.policy.health_failures:
            self._on_failed(node, event.reason)
            return
        if serves(node):
            world.publish("node_suspect", node=node.id, reason=event.reason)
        world.change(node, Change.MISSED, event.reason)
        self.probe_later(node, soon=True)

    def _judge(self, node: Node, answer: str) -> None:
        """Rule 2."""
        node.answer = answer
        answers = (
            peer.answer
            for peer in self._world.pool_of(node).nodes.values()
            if peer is not node and peer.answer is not None and serves(peer) and peer.likeness == node.likeness
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
            self._on_failed(node, reason)

    def probe_later(self, node: Node, *, soon: bool = False, spread: bool = False) -> None:
        """Sets the time of the next check: `soon` after a bad one, `spread` so that not all come at once."""
        world, policy = self._world, self._world.policy
        interval = max(policy.health_interval_s, len(world.nodes) / policy.probes_per_s)
        delay = min(interval, AGAIN_S) if soon else interval * (world.chance.random() if spread else 1.0)
        node.next_probe = world.now + delay
        world.at(delay, Timer.PROBE, node.id, node.epoch)
