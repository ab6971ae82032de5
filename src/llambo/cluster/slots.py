"""The bounded queue in front of one node's slots: first come, first served, nobody waits for ever.

Owns how many requests are in a node at once, so that llama.cpp's HTTP threads are never exhausted and a waiting
request can be cancelled or timed out here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llambo.core.errors import Overloaded, TimedOut


class Slots:
    """`total` requests run at once, at most `queue_limit` wait, each at most `timeout_s` seconds."""

    def __init__(self, total: int, *, queue_limit: int, timeout_s: float) -> None:
        self.total = total
        self.busy = 0
        self.waiting = 0
        self._queue_limit = queue_limit
        self._timeout_s = timeout_s
        self._free = asyncio.Semaphore(total)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Waits for a slot and holds it for the block.

        Raises: `Overloaded` at once when the queue is full, `TimedOut` when no slot came free in time.
        """
        await self._enter()
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
            self._free.release()

    async def _enter(self) -> None:
        if self._free.locked() and self.waiting >= self._queue_limit:
            raise Overloaded(f"{self.waiting} requests wait already, and the queue holds no more")
        self.waiting += 1
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise TimedOut(f"no slot came free within {self._timeout_s:g} s; all {self.total} are busy") from None
        finally:
            self.waiting -= 1
