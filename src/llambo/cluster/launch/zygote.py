"""A running zygote, seen from its launcher: orders go in, events come out.

Owns the child process and its two pipes. What the events mean is the launcher's business.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from llambo.core.errors import LlamboError, TimedOut
from llambo.engine import llama

_START_S = 60.0  # an import of a 100 MB library from a cold disk
END_S = 30.0
"""How long a zygote may take to end its nodes and itself (a thousand take 2 s); then it is killed, and they with it."""


class ZygoteProcess:
    """A zygote from its start to its end. `on_event` gets each node's event, `on_end` is called once, after the last.

    Made by `start`.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        *,
        on_event: Callable[[dict[str, Any]], None],
        on_end: Callable[[ZygoteProcess], None],
    ) -> None:
        self._process = process
        self._on_event = on_event
        self._on_end = on_end
        self._up = asyncio.Event()
        self._broken = ""
        self.has_ended = False
        self._reader = asyncio.create_task(self._read_events(), name=f"events of zygote {process.pid}")

    @classmethod
    async def start(
        cls, *, on_event: Callable[[dict[str, Any]], None], on_end: Callable[[ZygoteProcess], None]
    ) -> ZygoteProcess:
        """Starts the process; `wait_up` tells when it takes orders.

        Raises: `OSError`.
        """
        # A session of its own: signals from a terminal reach us alone, and we end it in our own order.
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llambo.node.zygote",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **llama.spin_environment(os.environ)},
        )
        return cls(process, on_event=on_event, on_end=on_end)

    async def wait_up(self) -> None:
        """Returns once the engine's library is loaded.

        Raises: `LlamboError` where it cannot be, `TimedOut`.
        """
        try:
            async with asyncio.timeout(_START_S):
                await self._up.wait()
        except TimeoutError:
            self._process.kill()
            raise TimedOut(f"the engine's library was not loaded within {_START_S:g} s") from None
        if self._broken:
            raise LlamboError(f"the engine cannot be loaded: {self._broken}")

    def order(self, order: dict[str, Any]) -> None:
        """Sends one order; to a zygote that has ended it is lost, as `on_end` tells."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")

    async def end(self) -> None:
        """Closes its standard input, at which it ends its nodes and itself; returns when that is done."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(END_S):
                await self._process.wait()
        except TimeoutError:  # it was stopped, perhaps
            self._process.kill()
        await self._reader

    async def _read_events(self) -> None:
        assert self._process.stdout is not None
        broken = "its process ended at once"
        async for line in self._process.stdout:
            event = json.loads(line)
            match event["event"]:
                case "up":
                    broken = ""
                    self._up.set()
                case "broken":
                    broken = event["message"]
                case _:
                    self._on_event(event)
        # The last node has closed its end too: whatever they were, they are gone.
        await self._process.wait()
        self._broken = broken
        self.has_ended = True
        self._up.set()
        self._on_end(self)
