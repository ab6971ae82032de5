"""What a node's state may become, and that the documentation draws it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llambo.cluster.state import SERVING, TRANSITIONS, Change, Node, NodeState, Pool, transition_diagram
from llambo.core.types import LoadOptions

DOCUMENT = Path(__file__).parents[2] / "docs" / "cluster.md"


def test_the_documentation_draws_the_table() -> None:
    blocks = re.findall(r"```mermaid\n(.*?)\n```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert transition_diagram() in blocks


def test_every_state_can_be_reached_and_left() -> None:
    reached = {NodeState.STARTING}
    for _ in NodeState:
        reached |= {target for (state, _), target in TRANSITIONS.items() if state in reached}
    assert reached == set(NodeState) == {state for state, _ in TRANSITIONS}


@pytest.mark.parametrize("state", [state for state in NodeState if state is not NodeState.DEAD])
def test_a_process_can_end_in_every_state(state: NodeState) -> None:
    assert TRANSITIONS[state, Change.ENDED] is NodeState.DEAD


def test_only_a_restart_brings_the_dead_back() -> None:
    assert [(change, to) for (state, change), to in TRANSITIONS.items() if state is NodeState.DEAD] == [
        (Change.RESTARTED, NodeState.STARTING)
    ]


@pytest.mark.parametrize("state", [NodeState.SUSPECT, NodeState.DRAINING, NodeState.DEAD])
def test_a_finished_request_does_not_put_a_node_back_to_work(state: NodeState) -> None:
    assert TRANSITIONS.get((state, Change.FREED)) not in SERVING


def test_the_diagram_has_every_change_of_the_table() -> None:
    drawn = transition_diagram()
    for (state, change), target in TRANSITIONS.items():
        assert re.search(rf"{state} --> {target}: .*{change.value}", drawn)


def test_a_pool_lists_its_free_nodes_whatever_the_order_they_come_and_go() -> None:
    pool = Pool("m", "medium", frozenset({"generate"}))
    nodes = [Node(f"n{number}", number, "m", "medium", LoadOptions()) for number in range(4)]
    for node in nodes:
        node.state = NodeState.READY
        pool.add(node)
    for gone, left in ((nodes[0], {1, 2, 3}), (nodes[3], {1, 2}), (nodes[2], {1})):
        gone.state = NodeState.SUSPECT
        pool.refresh(gone)
        assert {node.number for node in pool.free} == left
        assert [node.free_index for node in pool.free] == list(range(len(left)))
    nodes[0].state = NodeState.READY
    pool.refresh(nodes[0])
    assert [node.number for node in pool.rotation.values()] == [1, 0]
    pool.remove(nodes[1])
    assert (list(pool.rotation), pool.coming, pool.slots) == (["n0"], 3, 1)
