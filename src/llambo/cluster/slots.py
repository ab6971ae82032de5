"""The bounded queue in front of one node's slots: first come, first served, nobody waits for ever.

Owns how many requests are in a node at once, so that llama.cpp's HTTP threads are never exhausted and a waiting
request can be cancelled, timed out or sent away here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llambo.core.errors import LlamboError, Overloaded, TimedOut


class Slots:
    """`total` requests run at once, at most `queue_limit` wait, each at most `timeout_s` seconds."""

    def __init__(self, total: int, *, queue_limit: int, timeout_s: float) -> None:
        self.total = total
        self.busy = 0
        self._queue_limit = queue_limit
        self._timeout_s = timeout_s
        self._queue: deque[asyncio.Future[None]] = deque()
        self._closed: LlamboError | None = None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Waits for a slot and holds it for the block.

        Raises: `Overloaded` at once when the queue is full, `TimedOut` when no slot came free in time, and the error
        that `close` was given.
        """
        if self._closed is not None:
            raise self._closed
        if self.busy < self.total:
            self.busy += 1
        else:
            await self._wait()  # whoever leaves hands its slot on: `busy` stays as it is
        try:
            yield
        finally:
            self._hand_on()

    def close(self, error: LlamboError) -> None:
        """Sends everybody who waits, and who comes later, away with `error`."""
        self._closed = error
        while self._queue:
            self._queue.popleft().set_exception(error)

    async def _wait(self) -> None:
        if self.waiting >= self._queue_limit:
            raise Overloaded(f"{self.waiting} requests wait already, and the queue holds no more")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.shield(turn)
        except BaseException as error:
            if turn in self._queue:
                self._queue.remove(turn)
            elif turn.exception() is None:  # the slot came in the very moment in which we gave up
                self._hand_on()
            if isinstance(error, TimeoutError):
                busy = f"all {self.total} are busy"
                raise TimedOut(f"no slot came free within {self._timeout_s:g} s; {busy}") from None
            raise

    def _hand_on(self) -> None:
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self.busy -= 1
