"""Which of several ways to open an engine is the best, by what was measured. Pure.

1. The plain wheel is what everything is compared with, round by round; a candidate's figure is the median of the
   rounds' ratios, so that a busy machine slows both. With as many threads the two are compared by processor time, which
   others at work do not take away; with more or fewer only the clock tells.
2. A candidate that is slower than the plain wheel in prefill or in decode, by more than `SLOWER`, is out.
3. Of the rest the highest score wins: decode counts twice, since it is most of an answer.
4. It must win by `CLEARLY`, and in most rounds (`MOSTLY`): within the noise what is there stays.
5. Where a node is one of many small ones, memory that it has to itself counts: for twice the plain wheel's a candidate
   must be faster in the same proportion.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llambo.engine.trial import Setting

SLOWER = 0.97
CLEARLY = 1.05
MOSTLY = 0.75
FREE_BYTES = 16 * 2**20
"""So much more private memory is nothing to speak of."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One round of one candidate: tokens per second in prefill and in decode, by the clock and by processor time.

    The latter are 0 where they are not known.
    """

    prefill_tps: float
    decode_tps: float
    prefill_used_tps: float = 0.0
    decode_used_tps: float = 0.0

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
    """A candidate against the plain wheel: median ratios, the score that they make, and the share of rounds won."""

    measured: Measured
    prefill: float
    decode: float
    score: float
    won: float


def judge(plain: Measured, other: Measured) -> Judged:
    """Compares round with round; rounds that one of the two has not are left out."""
    pairs = list(zip(plain.samples, other.samples, strict=False))
    by_use = plain.setting.threads == other.setting.threads and all(a.has_used and b.has_used for a, b in pairs)
    ratios = [_ratios(a, b, by_use=by_use) for a, b in pairs]
    prefill = statistics.median(one for one, _ in ratios)
    decode = statistics.median(one for _, one in ratios)
    won = sum(_score(*one) > 1 for one in ratios)
    return Judged(other, prefill, decode, _score(prefill, decode), won / len(pairs))


def _ratios(plain: Sample, other: Sample, *, by_use: bool) -> tuple[float, float]:
    if by_use:
        return other.prefill_used_tps / plain.prefill_used_tps, other.decode_used_tps / plain.decode_used_tps
    return other.prefill_tps / plain.prefill_tps, other.decode_tps / plain.decode_tps


def _score(prefill: float, decode: float) -> float:
    return float((prefill * decode**2) ** (1 / 3))


def choose(plain: Measured, others: Sequence[Measured], *, is_small: bool) -> Judged:
    """The best of all, `plain` among them; `is_small` says that the node is one of many."""
    best = judge(plain, plain)
    bar = CLEARLY
    for other in others:
        judged = judge(plain, other)
        if min(judged.prefill, judged.decode) < SLOWER or judged.won < MOSTLY:
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


def rivals(plain: Setting, backends: Sequence[str], counts: Sequence[int]) -> list[Setting]:
    """Every backend with the plain number of threads, and every backend and the plain wheel with each of `counts`.

    A backend that is quicker leaves less to share out: which of two counts is better may differ between backends.
    """
    alike = [replace(plain, backend=one) for one in backends]
    return [*alike, *(replace(one, threads=count) for one in (plain, *alike) for count in counts)]


def thread_counts(most: int, *, is_small_model: bool) -> tuple[int, ...]:
    """Numbers of threads worth a try, the usual one first; `most` is what the node may have."""
    if is_small_model:
        return (1, most) if most > 1 else (1,)
    halves = {most, max(1, most // 2)}
    return tuple(sorted(halves, reverse=True))
