"""How many nodes a model should have: a pure decision from its load.

Up as soon as the load has been high for two looks in a row, down only after it has been low for the whole cool-down.
Between two changes at least the cool-down passes, except that nothing waits for the first node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LOOK_S = 1.0
"""Seconds between two looks at the load."""


@dataclass(frozen=True, slots=True)
class ScalePolicy:
    """The bounds of scaling. Loads are shares of all slots; `maximum` 0 sets no bound; `factor` is over 1."""

    up: float = 0.8
    down: float = 0.2
    factor: float = 1.5
    minimum: int = 1
    maximum: int = 0
    cool_down_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """What a model has to do and to do it with. `nodes` are those that serve or start."""

    nodes: int
    slots: int
    busy: int
    queued: int

    @property
    def share(self) -> float:
        """Work over slots; over 1 when requests wait."""
        return (self.busy + self.queued) / self.slots if self.slots else float(self.queued > 0)


@dataclass(frozen=True, slots=True)
class Trend:
    """What earlier looks saw: since when the load is high or low, and when the number was last changed."""

    high_since: float | None = None
    low_since: float | None = None
    changed_at: float = float("-inf")


def decide(policy: ScalePolicy, load: Load, trend: Trend, now: float) -> tuple[int, Trend]:
    """The number of nodes that there should be, and the trend to give the next look."""
    is_high, is_low = load.share >= policy.up, load.share <= policy.down
    high_since = (trend.high_since if trend.high_since is not None else now) if is_high else None
    low_since = (trend.low_since if trend.low_since is not None else now) if is_low else None
    target = load.nodes
    has_cooled = now - trend.changed_at >= policy.cool_down_s
    if load.nodes == 0 and load.queued:
        target = 1
    elif high_since is not None and now - high_since >= LOOK_S and has_cooled:
        target = math.ceil(load.nodes * policy.factor)
    elif low_since is not None and now - low_since >= policy.cool_down_s and has_cooled:
        target = math.floor(load.nodes / policy.factor)
    if load.nodes == 0 or has_cooled:
        target = max(target, policy.minimum)
        target = min(target, policy.maximum or target)
    if target == load.nodes:
        return target, Trend(high_since, low_since, trend.changed_at)
    return target, Trend(None, None, now)
