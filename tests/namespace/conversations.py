"""Conversations in tests: a session for a block, a read that waits, a model that speaks when it is let."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from llambo.ninep.client import AsyncClient, AsyncFile
from tests.namespace.namespace_world import World, until

TEXT = "one two drei€"
"""What the cluster in memory answers."""


@contextlib.asynccontextmanager
async def session(client: AsyncClient) -> AsyncIterator[tuple[AsyncFile, str]]:
    async with client.open("clone", "rw") as ctl:
        yield ctl, f"sessions/{(await ctl.read()).decode().strip()}"


async def first_read(file: AsyncFile, client: AsyncClient, world: World) -> asyncio.Task[bytes]:
    """A read of `file`, which is `client`'s, that waits on the server."""
    reading = asyncio.create_task(file.read())
    await asyncio.sleep(0)
    await client.stat("/")
    await until(lambda: world.cluster.requests)
    return reading


class Gate(asyncio.Event):
    """Lets so many through."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    async def wait(self) -> bool:  # type: ignore[override]
        while self.count <= 0 and not self.is_set():
            await asyncio.sleep(0.001)
        self.count -= 1
        return True

    def let_through(self) -> None:
        self.count += 1
