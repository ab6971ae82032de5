"""How often somebody may ask: a bucket of requests that fills again by the minute. Pure; the caller brings the time."""

from __future__ import annotations

from collections import OrderedDict

_MINUTE_S = 60.0
_KEPT = 10_000  # who asked longest ago is forgotten; by then the bucket is mostly full again


class Rates:
    """Limits each key to `per_minute` requests; so many may come at once, and one more every 60 / per_minute s."""

    def __init__(self, per_minute: int) -> None:
        if per_minute < 1:
            raise ValueError(f"a rate must be at least 1 a minute, not {per_minute}")
        self._size = float(per_minute)
        self._per_s = per_minute / _MINUTE_S
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was left, and when

    def take(self, key: str, now_s: float) -> float:
        """Takes one request of `key` at `now_s`, of any clock that only goes forward.

        Returns 0 where it is allowed, else after how many seconds the next one is.
        """
        left, then = self._buckets.pop(key, (self._size, now_s))
        left = min(self._size, left + (now_s - then) * self._per_s)
        # What adds up from many small shares must not miss the whole by a rounding error.
        allowed = left >= 1 - 1e-9
        self._buckets[key] = (left - 1 if allowed else left, now_s)
        if len(self._buckets) > _KEPT:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._per_s
