"""What each strategy is for; what all of them share is in tests/conformance/test_balancing.py."""

from __future__ import annotations

import pytest

from llambo.cluster.balancer import Rates
from llambo.cluster.events import StrategyChosen
from llambo.cluster.world import Policy
from llambo.core.errors import BadRequest
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
