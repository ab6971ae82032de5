"""What every strategy of spreading requests must keep."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llambo.cluster.balancer import STRATEGIES, Balancer, Rates
from llambo.cluster.prefix import PrefixIndex
from llambo.cluster.state import SERVING, Flight, Node, NodeState, Pool, Route
from llambo.cluster.world import Policy
from llambo.core.types import LoadOptions
from tests.simulation.driver import Driver

WEIGHTED = [name for name in STRATEGIES if name not in ("round-robin", "random")]

nodes = st.lists(
    st.tuples(st.sampled_from(list(NodeState)), st.integers(1, 4), st.integers(0, 4), st.booleans(), st.integers(0, 2)),
    min_size=1,
    max_size=30,
)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(nodes=nodes, claims=st.lists(st.integers(0, 29), max_size=5), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_it_gives_a_free_node_that_is_not_barred_whenever_there_is_one(
    strategy: str, nodes: list[tuple[NodeState, int, int, bool, int]], claims: list[int], seed: int
) -> None:
    index, rates = PrefixIndex(), Rates()
    pools = [Pool("m", f"t{number}", frozenset({"generate"}), 100 * number) for number in range(3)]
    barred, good = set(), set()
    for number, (state, slots, busy, is_barred, at) in enumerate(nodes):
        node = Node(f"n{number}", number, "m", f"t{at}", LoadOptions(), state=state, slots=slots, busy=min(busy, slots))
        node.rate_tps = float(number % 3) * 10
        rates.measured(0, node.rate_tps / slots)
        if state in SERVING:
            node.state = NodeState.BUSY if node.busy == slots else NodeState.READY
        pools[at].add(node)
        if is_barred:
            barred.add((node.id, node.epoch))
        elif node.state is NodeState.READY and at < 2:
            good.add(node.id)
    for claimed in claims:
        index.computed(f"n{claimed}", "s", (1, 2, claimed))
    flight = Flight(Route(1, "m", session="s", chain=(1, 2, 3)), 0, 30, barred=frozenset(barred))
    balancer = Balancer(strategy, random.Random(seed), index, rates)
    chosen = balancer.choose(pools[:2], flight)  # the third is another model's, or of a type that was not asked for
    assert (chosen.id in good) if chosen is not None else not good


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_requests_for_one_type_go_to_that_type_only(strategy: str) -> None:
    driver = Driver(Policy(strategy=strategy))
    driver.serve(slots=50, type="medium")
    large = driver.serve(slots=4, type="large")
    for _ in range(4):
        assert driver.where(driver.ask(node_type="large", session="s", chain=(1,))) == large
    assert driver.where(driver.ask(node_type="large")) == "queued"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_slot_is_left_free_while_somebody_waits(strategy: str) -> None:
    driver = Driver(Policy(strategy=strategy))
    chance = random.Random(3)
    for _ in range(12):
        driver.serve(slots=3)
    for number in range(600):
        driver.ask(session=f"s{number % 40}", chain=(number % 40,))
        if len(driver.placed) > 25 and chance.random() < 0.95:
            driver.finish(chance.choice(list(driver.placed)))
        free = sum(len(pool.free) for pool in driver.world.models["m"].pools)
        assert not (free and len(driver.world.models["m"].queue))


def play(strategy: str, *, streams: int, requests: int) -> dict[str, list[float]]:
    """Times at which each of two nodes ended its answers, n2 four times as fast, with so many requests at once.

    A node shares its speed among its answers; each answer is 100 tokens.
    """
    driver = Driver(Policy(strategy=strategy, queue_timeout_s=1e9, queue_limit=10**6, health_interval_s=1e9))
    speeds = {driver.serve(slots=64): 25.0, driver.serve(slots=64): 100.0}
    left: dict[int, float] = {}
    begun: dict[int, float] = {}
    ended: dict[str, list[float]] = {node: [] for node in speeds}
    asked = 0
    while asked < requests or left:
        while asked < requests and len(left) < streams:
            asked += 1
            number = driver.ask(session=f"s{asked}")
            left[number], begun[number] = 100.0, driver.now
        busy = {node: driver.node(node).busy for node in speeds}
        pace = {number: speeds[driver.where(number)] / busy[driver.where(number)] for number in left}
        step = min(left[number] / pace[number] for number in left)
        driver.now += step
        left = {number: rest - pace[number] * step for number, rest in left.items()}
        for number in [number for number, rest in left.items() if rest < 1e-6]:
            del left[number]
            ended[driver.where(number)].append(driver.now)
            driver.finish(number, tokens=100, decode_s=driver.now - begun[number])
    return ended


@pytest.mark.parametrize("strategy", WEIGHTED)
def test_a_node_four_times_as_fast_gets_four_times_the_requests(strategy: str) -> None:
    ended = play(strategy, streams=20, requests=1500)
    slow, fast = (len(times) for times in ended.values())
    assert 3.2 <= fast / slow <= 5.0


@pytest.mark.parametrize("strategy", WEIGHTED)
def test_nodes_of_unequal_speed_finish_together(strategy: str) -> None:
    ended = play(strategy, streams=100, requests=1000)
    began, (slow, fast) = 100.0, (max(times) for times in ended.values())
    assert (slow - began) / (fast - began) == pytest.approx(1.0, abs=0.1)
