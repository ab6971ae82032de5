"""The simulator's plans: all that will happen, in its order."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.simulate.plans import Plans


def nothing(_: int) -> None:
    """What is planned here."""


@given(st.lists(st.lists(st.floats(0, 3), max_size=6), min_size=1, max_size=30))
def test_plans_come_by_their_time_and_those_of_one_moment_as_they_were_made(delays: list[list[float]]) -> None:
    plans, number, now = Plans(), 0, 0.0
    waiting: list[tuple[float, int]] = []
    for added in delays:  # as in a run: each thing that happens plans others, none of them in the past
        for delay in added:
            plans.add(now + delay, nothing, (number,))
            waiting.append((now + delay, number))
            number += 1
        waiting.sort()
        assert plans.next_s() == (waiting[0][0] if waiting else None)
        if waiting:
            now, expected = waiting.pop(0)
            at, _, _, arguments = plans.pop()
            assert (at, arguments) == (now, (expected,))
    while plans.next_s() is not None:
        assert plans.pop()[3] == (waiting.pop(0)[1],)
    assert not waiting
    assert plans.made == number
