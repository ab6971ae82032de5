"""A cluster that exists only as numbers: the real orchestrator, driven by a clock of its own.

The decisions are `Orchestrator`'s, to the last line; only what performs them is made up: nodes that load, answer, die
and hang, and people who chat with them. One seed gives one outcome. No sockets, no processes, no real time: that is
how ten thousand nodes and a million requests are tried on one processor core.

    python -m llambo.cluster.simulate --nodes 10000 --requests 1000000
"""

from __future__ import annotations

from llambo.cluster.simulate.loop import Simulation
from llambo.cluster.simulate.outcome import Outcome
from llambo.cluster.simulate.scenario import Scenario

__all__ = ["Outcome", "Scenario", "Simulation", "simulate"]


def simulate(scenario: Scenario) -> Outcome:
    """Plays the scenario to its end. The outcome's `wall_s` is 0: whoever has a clock sets it."""
    return Simulation(scenario).run()
