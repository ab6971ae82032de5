"""The looks and the WebSockets of a gateway on a real port, behind its real guard, over a real cluster."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect

from llambo.cluster.api import Cluster
from llambo.core.config import Settings
from llambo.core.tokens import TokenStore
from llambo.core.types import LoadOptions
from llambo.gateway.looks import look_routes
from llambo.gateway.server import GatewayServer
from llambo.gateway.websocket import websocket_routes

SMALL = LoadOptions(ctx=512, slots=2, threads=1)
PATIENCE_S = 20.0


@dataclass(frozen=True)
class Served:
    """A gateway that runs. `address` is "127.0.0.1:PORT"."""

    cluster: Cluster
    server: GatewayServer
    tokens: TokenStore
    address: str

    @asynccontextmanager
    async def talk(self, **options: Any) -> AsyncIterator[Talker]:
        """A client of /v1/ws."""
        options = {"compression": None, "max_size": None, "max_queue": None} | options
        async with connect(f"ws://{self.address}/v1/ws", **options) as connection:
            yield Talker(connection)

    def busy(self) -> int:
        return self.cluster.status().busy


class Talker:
    """A client that speaks in JSON."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, **message: Any) -> None:
        await self.connection.send(json.dumps(message))

    async def infer(self, key: int | str, **message: Any) -> None:
        defaults = {"prompt": "hello", "temperature": 0, "max_tokens": 8}
        if "messages" in message:
            del defaults["prompt"]
        await self.send(**({"type": "infer", "id": key} | defaults | message))

    async def endless(self, key: int | str) -> None:
        """An answer that takes minutes, of which a piece is there once this returns."""
        await self.infer(key, max_tokens=450, prompt="go on")

    async def next(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(await asyncio.wait_for(self.connection.recv(), PATIENCE_S))
        return message

    async def answer(self, key: int | str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The tokens and the end of an answer, while nothing else is in flight."""
        tokens = []
        while (message := await self.next())["type"] == "token":
            assert message["id"] == key
            tokens.append(message)
        assert message["id"] == key, message
        return tokens, message


@asynccontextmanager
async def serving(
    cluster: Cluster, home: Path, *, on_demand: tuple[str, ...] = (), **gateway: Any
) -> AsyncIterator[Served]:
    settings = Settings.model_validate({"gateway": {"listen": "127.0.0.1:0", **gateway}}).gateway
    parts: Any = SimpleNamespace(door=cluster, control=cluster, models=lambda: list(on_demand), settings=settings)
    app = FastAPI()
    app.include_router(look_routes(parts))
    app.router.routes.extend(websocket_routes(parts))
    tokens = TokenStore(home / "tokens.json")
    server = GatewayServer(app, settings, tokens, lambda: 0)
    await server.start()
    try:
        yield Served(cluster, server, tokens, server.addresses[0].removeprefix("http://"))
    finally:
        await server.stop(0)
