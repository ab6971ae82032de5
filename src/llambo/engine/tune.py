"""Which of several ways to open an engine is the best, by what was measured. Pure.

1. The plain wheel is what everything is compared with, round by round; a candidate's figure is the median of the
   rounds' ratios, so that a busy machine slows both. With as many threads the two are compared by processor time, which
   others at work do not take away; with more or fewer only the clock tells.
2. A candidate that is slower than the plain wheel in prefill, in decode or with all slots at work, by more than
   `SLOWER`, is out. The last is asked of other numbers of threads alone: where threads wait for each other at every
   layer, what is quick for one answer may be several times slower for eight.
3. Of the rest the highest score wins: decode counts twice, of one answer and of all together, since it is most of an
   answer.
4. It must win by `CLEARLY`, and in most rounds (`MOSTLY`): within the noise what is there stays.
5. Where a node is one of many small ones, memory that it has to itself counts: for twice the plain wheel's a candidate
   must be faster in the same proportion.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from llambo.engine.trial import Setting

SLOWER = 0.97
CLEARLY = 1.05
MOSTLY = 0.75
FREE_BYTES = 16 * 2**20
"""So much more private memory is nothing to speak of."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one candidate: tokens per second in prefill and in decode, by the clock and by processor time.

    The latter are 0 where they are not known, and `together_tps`, of all slots by the clock, where it was not measured.
    """

    prefill_tps: float
    decode_tps: float
    prefill_used_tps: float = 0.0
    decode_used_tps: float = 0.0
    together_tps: float = 0.0

    @property
    def has_used(self) -> bool:
        """Whether the processor time is known."""
        return min(self.prefill_used_tps, self.decode_used_tps) > 0


@dataclass(frozen=True, slots=True)
class Measured:
    """A candidate and its rounds, in the order in which they were run; `private_bytes` after the last."""

    setting: Setting
    samples: tuple[Sample, ...]
    private_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate against the plain wheel: median ratios, the score that they make, and the share of rounds won.

    `together` is the ratio with all slots at work, and that of `decode` where it was not measured.
    """

    measured: Measured
    prefill: float
    decode: float
    together: float
    score: float
    won: float

    @property
    def worst(self) -> float:
        """The ratio in which it does worst."""
        return min(self.prefill, self.decode, self.together)


def judge(plain: Measured, other: Measured) -> Judged:
    """Compares round with round; rounds that one of the two has not are left out."""
    pairs = list(zip(plain.samples, other.samples, strict=False))
    by_use = plain.setting.threads == other.setting.threads and all(a.has_used and b.has_used for a, b in pairs)
    ratios = [_ratios(a, b, by_use=by_use) for a, b in pairs]
    prefill, decode, together = (statistics.median(one) for one in zip(*ratios, strict=True))
    won = sum(_score(*one) > 1 for one in ratios)
    return Judged(other, prefill, decode, together, _score(prefill, decode, together), won / len(pairs))


def _ratios(plain: Sample, other: Sample, *, by_use: bool) -> tuple[float, float, float]:
    """Of prefill, of decode, and with all slots at work."""
    if by_use:
        decode = other.decode_used_tps / plain.decode_used_tps
        return other.prefill_used_tps / plain.prefill_used_tps, decode, decode
    decode = other.decode_tps / plain.decode_tps
    has_together = min(plain.together_tps, other.together_tps) > 0
    together = other.together_tps / plain.together_tps if has_together else decode
    return other.prefill_tps / plain.prefill_tps, decode, together


def _score(prefill: float, decode: float, together: float) -> float:
    return statistics.geometric_mean((prefill, decode, together))


def choose(plain: Measured, others: Sequence[Measured], *, is_small: bool) -> Judged:
    """The best of all, `plain` among them; `is_small` says that the node is one of many."""
    best = judge(plain, plain)
    bar = CLEARLY
    for other in others:
        judged = judge(plain, other)
        if judged.worst < SLOWER or judged.won < MOSTLY:
            continue
        score = judged.score / _memory_price(plain, other) if is_small else judged.score
        if score >= bar:
            best, bar = judged, score
    return best


def _memory_price(plain: Measured, other: Measured) -> float:
    """How many times the plain wheel's private memory it takes; 1 where the difference is nothing."""
    if not plain.private_bytes or other.private_bytes - plain.private_bytes <= FREE_BYTES:
        return 1.0
    return other.private_bytes / plain.private_bytes


def thread_counts(most: int) -> tuple[int, ...]:
    """Numbers of threads worth a try, the usual one first; `most` is what the node may have."""
    return tuple(sorted({most, max(1, most // 2)}, reverse=True))
