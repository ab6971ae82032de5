"""Says how long nothing has come of an answer, so that nobody wonders whether the program hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Self

QUIET_S = 4.0
"""A silence that is no longer needs no words."""


class Silence:
    """For the block, tells `say` of a silence once a second, and says `usual` when it is over."""

    def __init__(self, say: Callable[[str], None], usual: str) -> None:
        self._say = say
        self._usual = usual
        self._heard_s = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def heard(self, usual: str = "") -> None:
        """Something has come; `usual` is what is said from now on."""
        self._heard_s = time.monotonic()
        if usual and usual != self._usual:
            self._usual = usual
            self._say(usual)

    async def __aenter__(self) -> Self:
        self._say(self._usual)
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(1)
            quiet_s = time.monotonic() - self._heard_s
            self._say(f"nothing has come for {quiet_s:.0f} s · Ctrl-C stops" if quiet_s > QUIET_S else self._usual)
