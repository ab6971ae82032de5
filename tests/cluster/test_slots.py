"""The queue in front of a node's slots."""

from __future__ import annotations

import asyncio

import pytest

from llambo.cluster.slots import Slots
from llambo.core.errors import Overloaded, TimedOut


async def test_as_many_requests_run_at_once_as_there_are_slots() -> None:
    slots = Slots(2, queue_limit=10, timeout_s=5)
    gate = asyncio.Event()
    highest = 0

    async def request() -> None:
        nonlocal highest
        async with slots.hold():
            highest = max(highest, slots.busy)
            await gate.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(request())
        while slots.waiting != 3:
            await asyncio.sleep(0)
        assert slots.busy == 2
        gate.set()
    assert (highest, slots.busy, slots.waiting) == (2, 0, 0)


async def test_a_full_queue_answers_at_once() -> None:
    slots = Slots(1, queue_limit=1, timeout_s=60)
    async with slots.hold():
        waiter = asyncio.create_task(_use(slots))
        while slots.waiting != 1:
            await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="1 requests wait already"):
            await _use(slots)
    await waiter


async def test_a_request_does_not_wait_longer_than_its_timeout() -> None:
    slots = Slots(1, queue_limit=5, timeout_s=0.01)
    async with slots.hold():
        with pytest.raises(TimedOut, match=r"no slot came free within 0\.01 s"):
            await _use(slots)
    await _use(slots)  # the slot was not lost


async def test_a_cancelled_waiter_leaves_no_trace() -> None:
    slots = Slots(1, queue_limit=5, timeout_s=5)
    async with slots.hold():
        waiter = asyncio.create_task(_use(slots))
        while slots.waiting != 1:
            await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert slots.waiting == 0
    await _use(slots)


async def _use(slots: Slots) -> None:
    async with slots.hold():
        pass
