"""What is simulated: how many nodes of which kind, which load, which faults.

Pure data, checked when it is made.
"""

from __future__ import annotations

from dataclasses import dataclass

from llambo.cluster.balancer import STRATEGIES
from llambo.core.errors import BadRequest


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run. Times in seconds, rates in tokens per second of a node of speed 1.

    `load` is the share of the cluster's capacity that the chats ask for, over 1 for more than it can do. `slots` are
    given out to the nodes in turn; a `slow_share` of the nodes runs at `slow_speed`. A node keeps `spare` conversations
    beside those in its slots, as llama.cpp's host cache does. Each chat has up to `turns` turns, thinks between them,
    and begins with one of `systems` system prompts. Every `burst_every_s` so many chats begin at once, and one greedy
    session sends a tenth as many requests in a moment.

    Raises: `BadRequest` for a value out of range.
    """

    nodes: int = 100
    requests: int = 10_000
    strategy: str = "prefix-affinity"
    seed: int = 1
    load: float = 0.7
    slots: tuple[int, ...] = (4, 4, 2, 8)
    slow_share: float = 0.2
    slow_speed: float = 0.25
    decode_tps: float = 50.0
    prefill_tps: float = 1000.0
    turns: int = 8
    think_s: float = 5.0
    spare: int = 8
    systems: int = 20
    burst_every_s: float = 20.0
    burst: int = 0
    deaths_per_min: float = 0.0
    hangs_per_min: float = 0.0
    start_s: float = 2.0
    queue_limit: int = 64
    queue_timeout_s: float = 30.0
    has_sessions: bool = True  # False: requests name no session, so that only their text tells what is warm

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise BadRequest(f"no strategy is called {self.strategy!r}; there are {', '.join(STRATEGIES)}")
        for name, low, high in (
            ("nodes", 1, 1_000_000),
            ("requests", 1, 100_000_000),
            ("load", 0.001, 100.0),
            ("slow_share", 0.0, 1.0),
            ("slow_speed", 0.01, 1.0),
            ("turns", 1, 1000),
            ("systems", 1, 1_000_000),
            ("spare", 0, 1_000_000),
            ("think_s", 1e-6, 1e6),
            ("slots", 1, 1024),
            ("burst", 0, 1_000_000),
            ("deaths_per_min", 0.0, 1e6),
            ("hangs_per_min", 0.0, 1e6),
        ):
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if not low <= one <= high:
                    raise BadRequest(f"{name} must be between {low:g} and {high:g}, not {one:g}")
        if not self.slots:
            raise BadRequest("slots must name at least one number of slots")
