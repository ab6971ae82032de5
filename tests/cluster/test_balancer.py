"""What each strategy is for; what all of them share is in tests/conformance/test_balancing.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.balancer import Rates
from llambo.cluster.events import StrategyChosen
from llambo.cluster.state import Node, NodeState, Pool
from llambo.cluster.world import Policy
from llambo.core.errors import BadRequest
from llambo.core.types import LoadOptions
from tests.simulation.driver import Driver


def with_strategy(strategy: str) -> Driver:
    return Driver(Policy(strategy=strategy, max_retries=0, health_interval_s=1000))


def test_the_name_of_no_strategy_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadRequest, match="no strategy is called 'best'; there are round-robin, least-loaded, random"):
        Driver(Policy(strategy="best"))


def test_another_strategy_is_used_from_then_on() -> None:
    driver = with_strategy("random")
    driver.tell(StrategyChosen("round-robin"))
    for _ in range(3):
        driver.serve(slots=9)
    assert [driver.where(driver.ask()) for _ in range(4)] == ["n1", "n2", "n3", "n1"]


def test_round_robin_goes_round_all_nodes_of_all_types() -> None:
    driver = with_strategy("round-robin")
    for type_ in ("medium", "medium", "large"):
        driver.serve(slots=9, type=type_)
    assert {driver.where(driver.ask()) for _ in range(3)} == {"n1", "n2", "n3"}
    counts = [driver.where(driver.ask()) for _ in range(15)]
    assert [counts.count(f"n{number}") for number in (1, 2, 3)] == [5, 5, 5]


def test_least_loaded_fills_nodes_evenly_by_their_slots() -> None:
    driver = with_strategy("least-loaded")
    driver.serve(slots=2)
    driver.serve(slots=8)
    places = [driver.where(driver.ask()) for _ in range(5)]
    assert (places.count("n1"), places.count("n2")) == (1, 4)


def test_idle_nodes_take_turns_though_one_was_measured_to_be_a_little_faster() -> None:
    driver = with_strategy("least-loaded")
    for rate in (10.0, 12.0, 9.0):
        driver.world.measure(driver.node(driver.serve(slots=4)), rate)
    places = []
    for _ in range(6):
        number = driver.ask()
        places.append(driver.where(number))
        driver.finish(number)
    assert sorted(places[:3]) == sorted(places[3:]) == ["n1", "n2", "n3"]


def test_an_idle_node_that_is_much_slower_gets_nothing_while_another_is_idle() -> None:
    driver = with_strategy("least-loaded")
    for rate in (10.0, 2.0):
        driver.world.measure(driver.node(driver.serve(slots=4)), rate)
    for _ in range(4):
        number = driver.ask()
        assert driver.where(number) == "n1"
        driver.finish(number)


def test_conversations_that_share_a_system_prompt_are_spread_and_each_stays_where_it_began() -> None:
    driver = with_strategy("prefix-affinity")
    for _ in range(4):
        driver.serve(slots=8)
    homes = {}
    for chat in range(120):
        number = driver.ask(chain=(1, 2), size_chars=400)
        homes[chat] = driver.where(number)
        driver.finish(number, chain=(1, 2, 1000 + chat, 2000 + chat))
    counts = [list(homes.values()).count(f"n{node}") for node in range(1, 5)]
    assert min(counts) >= 20
    assert max(counts) <= 40
    for chat, home in homes.items():
        number = driver.ask(chain=(1, 2, 1000 + chat, 2000 + chat), size_chars=600)
        assert driver.where(number) == home
        driver.finish(number, chain=(1, 2, 1000 + chat, 2000 + chat))


@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=200))
def test_what_nodes_were_given_lately_never_sums_up_to_more_than_their_slots(count: int, given_to: list[int]) -> None:
    pool = Pool("m", "t", frozenset())
    nodes = [Node(f"n{number}", number, "m", "t", LoadOptions(), slots=4) for number in range(count)]
    for node in nodes:
        node.state = NodeState.READY
        pool.add(node)
    for index in given_to:
        nodes[index % count].place()
    assert 0 <= sum(node.lately for node in nodes) <= pool.slots + 1


def test_a_node_that_gets_its_share_was_given_lately_as_many_requests_as_it_has_slots() -> None:
    driver = with_strategy("round-robin")
    for _ in range(4):
        driver.serve(slots=8)
    for _ in range(400):
        driver.finish(driver.ask())
    assert [node.lately for node in driver.world.nodes.values()] == pytest.approx([8] * 4, abs=0.7)


def test_power_of_two_choices_keeps_many_nodes_even() -> None:
    driver = with_strategy("least-loaded")
    for _ in range(200):
        driver.serve(slots=8)
    for _ in range(800):
        driver.ask()
    assert max(node.busy for node in driver.world.nodes.values()) <= 6  # drawing one at random gives 11 or more


def test_cognitive_affinity_leaves_large_nodes_for_large_prompts() -> None:
    driver = with_strategy("cognitive-affinity")
    small, large = driver.serve(type="small", ctx=512, slots=2), driver.serve(type="large", ctx=8192, slots=2)
    assert driver.where(driver.ask(size_chars=6000)) == large
    assert [driver.where(driver.ask(size_chars=100, max_tokens=50)) for _ in range(3)] == [small, small, large]


def test_prefix_affinity_goes_where_the_session_was() -> None:
    driver = with_strategy("prefix-affinity")
    for _ in range(20):
        driver.serve(slots=4)
    for number in range(40):
        first = driver.ask(session=f"s{number}")
        node = driver.where(first)
        driver.finish(first)
        assert driver.where(driver.ask(session=f"s{number}")) == node


def test_prefix_affinity_goes_to_the_longest_match() -> None:
    driver = with_strategy("prefix-affinity")
    for _ in range(12):
        driver.serve(slots=4)
    first = driver.ask(chain=(1, 2, 3))
    node = driver.where(first)
    driver.finish(first, chain=(1, 2, 3, 4))
    second = driver.ask(chain=(1, 2, 3, 4, 5), size_chars=700)
    assert driver.where(second) == node
    assert driver.world.flights[second].matched == 4


def test_a_warm_node_that_is_much_fuller_is_passed_over() -> None:
    driver = with_strategy("prefix-affinity")
    for _ in range(2):
        driver.serve(slots=4)
    first = driver.ask(chain=(1,))
    warm = driver.where(first)
    driver.finish(first, chain=(1,))
    places = [driver.where(driver.ask(chain=(1, number))) for number in range(2, 8)]
    assert places[:3] == [warm] * 3
    assert places[3] != warm


def test_the_mean_speed_is_of_those_that_were_measured() -> None:
    rates = Rates()
    assert rates.mean == 0
    rates.measured(0, 10)
    rates.measured(0, 30)
    assert rates.mean == 20
    rates.measured(10, 0)
    assert rates.mean == 30
    rates.measured(30, 0)
    assert rates.mean == 0
