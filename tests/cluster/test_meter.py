"""The meter of tokens: exact at once, with a rate that rises and falls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from llambo.cluster.survey import WINDOW, Meter


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_tokens_count_at_once_and_their_rate_is_of_the_last_whole_intervals() -> None:
    meter = Meter(interval_s=0.05)
    meter.add(10)
    meter.add(20)
    assert (meter.total, meter.per_s) == (30, 0.0)
    await until(lambda: meter.per_s > 0)
    assert round(meter.per_s * WINDOW * 0.05, 6) == 30
    await until(lambda: meter.per_s == 0)
    assert meter.total == 30


async def test_a_correction_is_counted_too_and_the_rate_comes_back_after_a_silence() -> None:
    meter = Meter(interval_s=0.01)
    meter.add(10)
    meter.add(-4)
    await until(lambda: meter.per_s > 0)
    assert round(meter.per_s * WINDOW * 0.01, 6) == 6
    await until(lambda: meter.per_s == 0)
    meter.add(5)
    await until(lambda: meter.per_s > 0)
    assert round(meter.per_s * WINDOW * 0.01, 6) == 5
