"""The queue in front of a node's slots."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.cluster.slots import Slots
from llambo.core.errors import NoModel, Overloaded, TimedOut


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


async def test_closing_sends_everybody_away_and_lets_nobody_in() -> None:
    slots = Slots(1, queue_limit=5, timeout_s=60)
    async with slots.hold():
        waiter = asyncio.create_task(_use(slots))
        while slots.waiting != 1:
            await asyncio.sleep(0)
        slots.close(NoModel("gone"))
        with pytest.raises(NoModel, match="gone"):
            await waiter
    with pytest.raises(NoModel, match="gone"):
        await _use(slots)
    assert (slots.busy, slots.waiting) == (0, 0)


@given(st.integers(1, 3), st.lists(st.sampled_from(["enter", "leave", "cancel"]), max_size=40))
def test_no_order_of_events_loses_or_doubles_a_slot(total: int, events: list[str]) -> None:
    async def scenario() -> None:
        slots = Slots(total, queue_limit=100, timeout_s=60)
        tasks: list[asyncio.Task[None]] = []
        gates: dict[asyncio.Task[None], asyncio.Event] = {}
        running: set[asyncio.Task[None]] = set()

        async def request(gate: asyncio.Event) -> None:
            async with slots.hold():
                me = asyncio.current_task()
                assert me is not None
                running.add(me)
                assert len(running) <= total
                try:
                    await gate.wait()
                finally:
                    running.discard(me)

        for event in events:
            if event == "enter":
                gate = asyncio.Event()
                task = asyncio.create_task(request(gate))
                gates[task] = gate
                tasks.append(task)
            elif tasks:
                task = tasks.pop(0)
                gates[task].set() if event == "leave" else task.cancel()
            await asyncio.sleep(0)
        for gate in gates.values():
            gate.set()
        await asyncio.gather(*gates, return_exceptions=True)
        assert (slots.busy, slots.waiting) == (0, 0)

    asyncio.run(scenario())


async def _use(slots: Slots) -> None:
    async with slots.hold():
        pass
