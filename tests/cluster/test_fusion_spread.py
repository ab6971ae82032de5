"""Voters of one question go to nodes apart from each other, as evenly as can be, whatever the strategy."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llambo.cluster.balancer import STRATEGIES
from llambo.cluster.state import Crowd
from llambo.cluster.world import Policy
from tests.simulation.driver import Driver


def with_strategy(strategy: str) -> Driver:
    return Driver(Policy(strategy=strategy, max_retries=3, health_interval_s=1000))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_as_many_voters_as_nodes_have_a_node_each(strategy: str) -> None:
    driver = with_strategy(strategy)
    for _ in range(20):
        driver.serve(slots=4)
    crowd = Crowd()
    assert len({driver.where(driver.ask(crowd=crowd)) for _ in range(20)}) == 20


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_session_does_not_hold_its_voters_together(strategy: str) -> None:
    driver = with_strategy(strategy)
    for _ in range(3):
        driver.serve(slots=4)
    driver.finish(driver.ask(session="s", chain=(1, 2)), chain=(1, 2, 3))
    crowd = Crowd()
    assert len({driver.where(driver.ask(session="s", chain=(1, 2, 3), crowd=crowd)) for _ in range(3)}) == 3


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(nodes=st.integers(1, 12), voters=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_more_voters_than_nodes_are_spread_evenly(strategy: str, nodes: int, voters: int) -> None:
    driver = with_strategy(strategy)
    for _ in range(nodes):
        driver.serve(slots=40)
    crowd = Crowd()
    counts = Counter(driver.where(driver.ask(crowd=crowd)) for _ in range(voters))
    assert sum(counts.values()) == voters
    assert len(counts) == min(nodes, voters)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert crowd.nodes == counts


def test_voters_that_find_no_slot_wait_for_one_as_any_request() -> None:
    driver = with_strategy("prefix-affinity")
    for _ in range(2):
        driver.serve(slots=1)
    crowd = Crowd()
    numbers = [driver.ask(crowd=crowd) for _ in range(3)]
    assert [driver.where(number) for number in numbers[2:]] == ["queued"]
    freed = driver.where(numbers[0])
    driver.finish(numbers[0])
    assert driver.where(numbers[2]) == freed
    assert crowd.nodes[freed] == 2


def test_a_voter_whose_node_failed_goes_to_another_one() -> None:
    driver = with_strategy("least-loaded")
    for _ in range(3):
        driver.serve(slots=4)
    crowd = Crowd()
    voters = [driver.ask(crowd=crowd) for _ in range(2)]
    held = {driver.where(voter) for voter in voters}
    driver.fail(voters[0])
    assert driver.where(voters[0]) not in held
