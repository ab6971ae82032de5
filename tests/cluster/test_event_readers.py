"""Followers of events: everybody gets all of them, in order, or is told how many it has lost."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from llambo.cluster.control import ClusterEvent
from llambo.cluster.event_readers import KEPT, EventReaders


def event(number: int) -> ClusterEvent:
    return ClusterEvent(float(number), f"e{number}")


async def begun(readers: EventReaders, into: list[ClusterEvent]) -> asyncio.Task[None]:
    """A reader that has taken its first step, and reads whenever it gets a turn."""

    async def read() -> None:
        async with aclosing(readers.events()) as events:
            async for one in events:
                into.append(one)

    task = asyncio.create_task(read())
    await asyncio.sleep(0)
    return task


async def test_every_reader_gets_what_is_told_from_its_first_step_to_the_end() -> None:
    readers = EventReaders()
    first: list[ClusterEvent] = []
    second: list[ClusterEvent] = []
    tasks = [await begun(readers, first)]
    readers.tell(event(1))
    tasks.append(await begun(readers, second))
    readers.tell(event(2))
    readers.end()
    await asyncio.gather(*tasks)
    assert ([one.kind for one in first], [one.kind for one in second]) == (["e1", "e2"], ["e2"])


@pytest.mark.parametrize("count", [KEPT - 1, KEPT, KEPT + 1, 3 * KEPT])
async def test_a_reader_that_is_behind_gets_the_first_and_the_number_of_the_others(count: int) -> None:
    readers = EventReaders()
    read: list[ClusterEvent] = []
    task = await begun(readers, read)
    for number in range(count):
        readers.tell(event(number))
    while len(read) < min(count, KEPT):
        await asyncio.sleep(0)
    readers.end()
    await task
    kept = min(count, KEPT - 1)
    assert [one.kind for one in read[:kept]] == [f"e{number}" for number in range(kept)]
    assert [(one.kind, one.fields) for one in read[kept:]] == (
        [("lost", {"events": count - kept})] if count > kept else []
    )


async def test_the_end_comes_also_to_a_reader_that_is_behind() -> None:
    readers = EventReaders()
    read: list[ClusterEvent] = []
    task = await begun(readers, read)
    for number in range(2 * KEPT):
        readers.tell(event(number))
    readers.end()
    async with asyncio.timeout(10):
        await task
    assert (len(read), read[0].kind, read[-1].fields) == (KEPT, "e0", {"events": KEPT + 1})


async def test_one_who_has_left_is_told_nothing_more() -> None:
    readers = EventReaders()
    task = await begun(readers, [])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not readers._queues
