"""Gateways for tests: the real application behind its guard on a real port, over a cluster or replies made up.

`serving` is the whole of it; `MadeUp` stands in for the cluster where the timing of a node's reply is what is tested.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx2 as httpx

from llambo.cluster.api import Cluster
from llambo.cluster.control import Control
from llambo.cluster.door import Door
from llambo.cluster.relay import RelayReply, RelayRequest, Relays, Take
from llambo.cluster.transcript import Transcript
from llambo.core import paths
from llambo.core.errors import LlamboError
from llambo.core.sections import Gateway as GatewaySettings
from llambo.core.tokens import TokenStore
from llambo.gateway.app import Gateway, make_app
from llambo.gateway.server import GatewayServer
from llambo.gateway.streams import Streams

Step = bytes | LlamboError | Callable[[], Awaitable[object]]


@dataclass
class Reply:
    """A node's reply: each step is a piece, an error to raise, or something to wait for."""

    steps: Sequence[Step]
    status: int = 200
    content_type: str = "text/event-stream"
    node: str = "n1"
    is_whole: bool = True
    transcript: Transcript = field(default_factory=Transcript)

    async def pour(self, take: Take) -> bool:
        while self.steps:
            step, *self.steps = self.steps
            match step:
                case bytes():
                    if self.content_type == "text/event-stream":
                        self.transcript.take(step)
                    if not take(step):
                        return False
                case LlamboError():
                    raise step
                case _:
                    await step()
        if self.is_whole and self.status == 200:
            self.transcript.end()
        return True


@dataclass
class MadeUp:
    """Gives the replies one after another, each after `before`; an error in their place is raised."""

    replies: list[Reply | LlamboError]
    before: Callable[[], Awaitable[object]] | None = None
    requests: list[RelayRequest] = field(default_factory=list)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def relay(self, request: RelayRequest) -> AsyncIterator[RelayReply]:
        self.requests.append(request)
        self.entered.set()
        try:
            if self.before is not None:
                await self.before()
            reply = self.replies.pop(0)
            if isinstance(reply, LlamboError):
                raise reply
            if request.resume is not None:
                reply.transcript = request.resume
            yield reply
        finally:
            self.closed.set()


@dataclass
class Served:
    """A gateway on a port, a client for it, and a token that may make the engine work."""

    url: str
    server: GatewayServer
    gateway: Gateway
    client: httpx.AsyncClient
    token: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@asynccontextmanager
async def serving(
    cluster: Cluster, relays: Relays | None = None, *, models: tuple[str, ...] = (), **settings: Any
) -> AsyncIterator[Served]:
    """A gateway over `cluster`; with `relays` its requests go there. `settings` are of the section gateway."""
    section = GatewaySettings.model_validate({"listen": "127.0.0.1:0", **settings})
    gateway = Gateway(
        relays=relays or cast(Relays, cluster),
        door=cast(Door, cluster),
        control=cast(Control, cluster),
        models=lambda: list(models),
        settings=section,
        streams=Streams(section.resume_window, section.resume_memory),
    )
    paths.home().mkdir(parents=True, exist_ok=True)
    tokens = TokenStore(paths.home() / "tokens.json")
    server = GatewayServer(make_app(gateway), section, tokens, gateway.streams.end)
    await server.start()
    try:
        (url,) = server.addresses
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            yield Served(url, server, gateway, client, tokens.create("infer")[1])
    finally:
        await server.stop(0)
        gateway.streams.clear()
