"""A gateway's outer layer on real sockets, before an application that tells what it was given."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llambo.core.sections import Gateway
from llambo.core.tokens import TokenStore
from llambo.gateway.server import GatewayServer


class Told:
    """The application: answers with what it knows of a request. `/stream` goes on until `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.streams = 0
        self.hung_up = asyncio.Event()
        self.bodies: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await self._talk(scope, receive, send)
        elif scope["path"] == "/stream":
            await self._stream(receive, send)
        elif scope["path"] == "/fault":
            raise ValueError("a fault")
        else:
            await self._tell(scope, receive, send)

    async def _tell(self, scope: Any, receive: Any, send: Any) -> None:
        size = 0
        while (message := await receive())["type"] == "http.request":
            size += len(message["body"])
            if not message["more_body"]:
                break
        else:
            self.hung_up.set()
            return
        self.bodies.append(size)
        known = {"body": size, **{key: scope["state"][key] for key in ("request_id", "owner", "scope")}}
        body = json.dumps(known).encode()
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _stream(self, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        self.streams += 1
        released = asyncio.create_task(self.release.wait())
        gone = asyncio.create_task(receive())
        await asyncio.wait({released, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.hung_up.set()
        await send({"type": "http.response.body", "body": b"two"})
        for task in (released, gone):
            task.cancel()

    async def _talk(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        known = {"subprotocols": scope["subprotocols"], **{key: scope["state"][key] for key in ("owner", "scope")}}
        await send({"type": "websocket.send", "text": json.dumps(known)})
        while (await receive())["type"] == "websocket.receive":
            pass


@asynccontextmanager
async def serving(home: Path, app: Any = None, **settings: Any) -> AsyncIterator[GatewayServer]:
    """The server on 127.0.0.1, or on `listen`; ended at once when the block is over."""
    settings = {"listen": "127.0.0.1:0"} | settings
    server = GatewayServer(app or Told(), Gateway(**settings), TokenStore(home / "tokens.json"), lambda: 0)
    await server.start()
    try:
        yield server
    finally:
        await server.stop(0)


@dataclass(frozen=True)
class Reply:
    """An HTTP reply, whole."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> Any:
        """What the envelope says."""
        return json.loads(self.body)["error"]


async def connect(
    server: GatewayServer, number: int = 0, tls: ssl.SSLContext | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to one of the server's addresses."""
    address = server.addresses[number]
    if address.startswith("unix!"):
        return await asyncio.open_unix_connection(address.removeprefix("unix!"))
    host, _, port = address.partition("://")[2].rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), ssl=tls)


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """One reply with a known length, or until the server hangs up."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    status, *lines = head.decode().split("\r\n")[:-2]
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    size = "0" if " 204 " in status else headers.get("content-length")
    body = await asyncio.wait_for(reader.read() if size is None else reader.readexactly(int(size)), 10)
    return Reply(int(status.split()[1]), headers, body)


def header(path: str = "/v1/models", method: str = "GET", **headers: str) -> bytes:
    """A request's header; `_` in a name is written as `-`."""
    given = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def ask(
    server: GatewayServer,
    path: str = "/v1/models",
    method: str = "GET",
    *,
    body: bytes = b"",
    number: int = 0,
    tls: ssl.SSLContext | None = None,
    **headers: str,
) -> Reply:
    """One request on a connection of its own."""
    reader, writer = await connect(server, number, tls)
    try:
        if body:
            headers["content_length"] = str(len(body))
        writer.write(header(path, method, **headers) + body)
        return await read_reply(reader)
    finally:
        writer.close()


async def ends(reader: asyncio.StreamReader) -> bytes:
    """What comes until the server hangs up."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), 10)
    return b""
