"""One task at a time, which may be interrupted without the one who waits for it."""

from __future__ import annotations

import asyncio

import pytest

from llambo.core.foreground import Foreground


async def test_an_interrupt_ends_the_work_alone_and_the_next_runs() -> None:
    foreground = Foreground()
    assert not foreground.interrupt()
    begun = asyncio.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(foreground.run(endless()))
    await begun.wait()
    assert foreground.interrupt()
    assert await waiting is False
    assert await foreground.run(asyncio.sleep(0)) is True
    assert not foreground.interrupt()


async def test_who_is_cancelled_while_it_waits_cancels_the_work_and_waits_for_its_end() -> None:
    foreground = Foreground()
    begun, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    waiting = asyncio.create_task(foreground.run(work()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()


async def test_what_the_work_raises_is_raised() -> None:
    async def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await Foreground().run(fail())
