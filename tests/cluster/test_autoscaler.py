"""How many nodes there should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.autoscaler import Load, ScalePolicy, Trend, decide

POLICY = ScalePolicy(up=0.8, down=0.2, factor=1.5, minimum=1, maximum=10, cool_down_s=30)


def looks(load: Load, seconds: int, policy: ScalePolicy = POLICY, trend: Trend | None = None) -> list[int]:
    """The targets of one look a second at a load that stays as it is."""
    trend, targets = trend or Trend(), []
    for now in range(seconds):
        target, trend = decide(policy, load, trend, float(now))
        targets.append(target)
    return targets


def test_one_high_look_is_not_enough_and_two_are() -> None:
    assert looks(Load(2, 4, busy=4, queued=0), 2) == [2, 3]


def test_the_load_must_be_low_for_the_whole_cool_down() -> None:
    targets = looks(Load(4, 8, busy=1, queued=0), 31)
    assert targets[:30] == [4] * 30
    assert targets[30] == 2


def test_between_two_changes_the_cool_down_passes() -> None:
    targets = looks(Load(2, 4, busy=4, queued=9), 40)
    assert [now for now, target in enumerate(targets) if target != 2] == [1, 31]


def test_nothing_waits_for_the_first_node() -> None:
    target, _ = decide(POLICY, Load(0, 0, 0, queued=1), Trend(changed_at=9.9), 10.0)
    assert target == 1


def test_a_node_that_is_missing_is_not_replaced_again_and_again() -> None:
    policy = ScalePolicy(minimum=3, cool_down_s=30)
    assert [now for now, target in enumerate(looks(Load(2, 4, 1, 0), 40, policy)) if target == 3] == [0, 30]


@pytest.mark.parametrize(
    ("nodes", "busy", "target"),
    [(8, 16, 10), (10, 20, 10), (12, 12, 10), (1, 0, 1), (3, 3, 3)],
    ids=["capped", "at the maximum", "over the maximum", "at the minimum", "neither high nor low"],
)
def test_the_bounds_hold(nodes: int, busy: int, target: int) -> None:
    assert looks(Load(nodes, nodes * 2, busy, 0), 31)[-1] in (target, nodes)
    assert target in looks(Load(nodes, nodes * 2, busy, 0), 31)


def test_a_minimum_of_zero_lets_the_last_one_go() -> None:
    assert looks(Load(1, 2, 0, 0), 31, ScalePolicy(minimum=0))[-1] == 0


@given(st.integers(0, 50), st.integers(0, 200), st.integers(0, 200), st.floats(0, 1e6))
def test_a_target_is_within_the_bounds_or_what_there_is(nodes: int, busy: int, queued: int, now: float) -> None:
    target, _ = decide(POLICY, Load(nodes, nodes * 4, busy, queued), Trend(high_since=0.0, low_since=0.0), now)
    assert target == nodes or POLICY.minimum <= target <= POLICY.maximum
