"""Those who follow what happens: each has a queue of its own, and a slow one is told how much it has lost.

Knows nothing of what the events say.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

from llambo.cluster.control import ClusterEvent

KEPT = 1024
"""Events that a slow reader may be behind before it loses some."""

_END = ClusterEvent(0.0, "")
"""What readers get last, and do not pass on."""


class EventReaders:
    """All who read now."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[ClusterEvent]] = set()

    async def events(self) -> AsyncGenerator[ClusterEvent, None]:
        """Everything that is told from the first step on, until `end`."""
        queue: asyncio.Queue[ClusterEvent] = asyncio.Queue()
        self._queues.add(queue)
        try:
            while (event := await queue.get()) is not _END:
                yield event
        finally:
            self._queues.discard(queue)

    def tell(self, event: ClusterEvent) -> None:
        """Gives it to everybody; never waits."""
        for queue in self._queues:
            if queue.qsize() >= KEPT - 1:  # the last place is for saying what was lost
                _lose(queue)
            else:
                queue.put_nowait(event)

    def end(self) -> None:
        """Nothing more will happen; what is queued is still read."""
        for queue in self._queues:
            queue.put_nowait(_END)


def _lose(queue: asyncio.Queue[ClusterEvent]) -> None:
    """Counts one more event that is lost, in the last event that will be read."""
    if queue.qsize() < KEPT:
        queue.put_nowait(ClusterEvent(time.time(), "lost", {"events": 1}))
        return
    kept = [queue.get_nowait() for _ in range(queue.qsize())]
    last = kept.pop()
    for event in kept:
        queue.put_nowait(event)
    queue.put_nowait(ClusterEvent(last.time, "lost", {"events": last.fields["events"] + 1}))
