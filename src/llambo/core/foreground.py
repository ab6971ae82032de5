"""What a person waits for at a prompt, and may stop: one task at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Foreground:
    """Runs one piece of work after the other. `interrupt` ends the one that runs, and nothing else."""

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None

    async def run(self, work: Coroutine[Any, Any, object]) -> bool:
        """Runs `work` to its end; says whether it came to it, and was not interrupted.

        Cancelling the caller cancels the work, and waits for it. Raises: what `work` raises.
        """
        self._task = task = asyncio.create_task(work)
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            self._task = None
        if task.cancelled():
            return False
        task.result()
        return True

    def interrupt(self) -> bool:
        """Stops what runs; says whether there was something."""
        return self._task is not None and self._task.cancel()
