"""What a run came to, and how it is counted.

`lost` are requests that never ended, `doubled` those that ended twice or were on two nodes at once: both are faults of
the orchestrator, whatever the load and the failures were.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Outcome:
    """The figures of one run; times in seconds, simulated ones but for `wall_s`.

    `hit_share` is the share of prompt tokens that were in a cache, `oracle_share` what one node with unlimited slots
    would have had. `fairness` is Jain's index over the sessions' ideal time over real time: 1 is alike for all.
    `speeds` gives per node speed (nodes, share of slot time in use, requests per slot).
    """

    nodes: int
    slots: int
    strategy: str
    requests: int
    finished: int
    refused: dict[str, int]
    lost: int
    doubled: int
    retries: int
    failovers: int
    restarts: int
    simulated_s: float
    requests_per_s: float
    tokens_per_s: float
    queue_s: dict[str, float]
    ttft_s: dict[str, float]
    hit_share: float
    oracle_share: float
    fairness: float
    sessions: int
    speeds: dict[str, tuple[int, float, float]]
    events: int
    wall_s: float = 0.0

    def text(self) -> str:
        """The figures for people."""
        refused = ", ".join(f"{count} {code}" for code, count in sorted(self.refused.items())) or "none"
        ratio = self.hit_share / self.oracle_share if self.oracle_share else 1.0
        lines = [
            f"{self.nodes} nodes, {self.slots} slots, {self.strategy}",
            f"requests    {self.requests}: {self.finished} finished, refused {refused}",
            f"lost        {self.lost}",
            f"doubled     {self.doubled}",
            f"retries     {self.retries}, failovers {self.failovers}, restarts {self.restarts}",
            f"throughput  {self.requests_per_s:.1f} requests/s, {self.tokens_per_s:.0f} tokens/s",
            f"queue time  {_spread(self.queue_s)}",
            f"first token {_spread(self.ttft_s)}",
            f"prefix hits {self.hit_share:.1%} of prompt tokens; one unlimited node {self.oracle_share:.1%};"
            f" ratio {ratio:.3f}",
            f"fairness    {self.fairness:.3f} over {self.sessions} sessions",
        ]
        lines += [
            f"speed {speed:>5} {count} nodes, {used:.1%} in use, {each:.1f} requests per slot"
            for speed, (count, used, each) in self.speeds.items()
        ]
        return "\n".join([*lines, f"time        {self.simulated_s:.1f} s simulated in {self.wall_s:.1f} s"])


@dataclass(slots=True)
class Tally:
    """Counts as it goes."""

    finished: int = 0
    doubled: int = 0
    events: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    oracle_tokens: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    queue_s: array[float] = field(default_factory=lambda: array("d"))
    ttft_s: array[float] = field(default_factory=lambda: array("d"))
    paces: dict[str, list[float]] = field(default_factory=dict)  # of each session the sum, and how many

    def pace(self, session: str, ideal_s: float, real_s: float) -> None:
        """A request of the session took so long, and alone on a fast node would have taken `ideal_s`."""
        pace = self.paces.get(session)
        if pace is None:
            pace = self.paces[session] = [0.0, 0]
        pace[0] += ideal_s / real_s if real_s else 1.0
        pace[1] += 1

    def fairness(self) -> float:
        """Jain's index (R. Jain, D. Chiu, W. Hawe, 1984) over the sessions' mean paces."""
        return jain(total / count for total, count in self.paces.values())


def jain(values: Iterable[float]) -> float:
    """(sum x)^2 / (n sum x^2); 1 for no values."""
    kept = list(values)
    squares = sum(value * value for value in kept)
    return sum(kept) ** 2 / (len(kept) * squares) if squares else 1.0


def spread(values: array[float]) -> dict[str, float]:
    """Mean and percentiles."""
    ordered = sorted(values)
    if not ordered:
        return {"mean": 0.0, "p50": 0.0, "p90": 0.0, "p99": 0.0, "max": 0.0}
    last = len(ordered) - 1
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {"mean": sum(ordered) / len(ordered)} | {
        name: ordered[min(last, int(share * len(ordered)))] for name, share in shares.items()
    }


def _spread(values: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f} s" for name, value in values.items())
