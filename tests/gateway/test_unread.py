"""Clients that read slowly or not at all, on real sockets: what is kept for them, and for how long."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateways import MadeUp, Reply, Served, serving
from http_servers import header

from llambo.cluster.api import Cluster

CHAT = "/v1/chat/completions"
PIECE = b"data: " + b"x" * 65_528 + b"\n\n"
MANY = 300
"""Pieces, 20 MB: more than the buffers of both sides hold."""
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


def flood() -> Reply:
    return Reply([PIECE] * MANY + [DONE])


@contextmanager
def client(served: Served) -> Iterator[socket.socket]:
    """A connection with a small buffer, which nobody reads unasked."""
    address = served.url
    with socket.socket(socket.AF_UNIX if address.startswith("unix!") else socket.AF_INET) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.connect(address.removeprefix("unix!") if address.startswith("unix!") else ("127.0.0.1", served.port))
        sock.setblocking(False)
        yield sock


async def ask(sock: socket.socket, path: str = CHAT, **headers: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
    request = header(path, "POST", content_length=str(len(body)), **headers) + body
    await asyncio.get_running_loop().sock_sendall(sock, request)


async def read(sock: socket.socket, size: int = 2**20) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, size)


async def no_connection(served: Served) -> None:
    async with asyncio.timeout(5):
        await served.server._state.connections.none_left.wait()


async def test_a_client_that_never_reads_is_dropped_and_its_stream_can_be_resumed(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    relays = MadeUp([flood(), Reply([DONE])])
    async with serving(cluster, relays, write_timeout="300ms") as served:
        with client(served) as sock:
            await ask(sock)
            async with asyncio.timeout(10):
                await relays.closed.wait()
            head = (await read(sock)).partition(b"\r\n\r\n")[0].decode()
            await no_connection(served)
        name = next(line.split(": ")[1] for line in head.split("\r\n") if line.startswith("x-request-id"))
        assert (served.gateway.streams.running, served.gateway.streams.kept) == (0, 1)
        count = served.gateway.streams.take(name, "").transcript.count  # type: ignore[union-attr]
        assert 0 < count < MANY, "the node had to wait"
        rest = await served.client.get(f"/v1/streams/{name}", params={"from": count - 1})
    assert rest.content == PIECE + DONE
    assert caplog.text.count("a client has left its answer unread for 0.3 s") == 1


@pytest.mark.parametrize(("kind", "size"), [("tcp", 16_384), ("unix", 4096)])
async def test_a_client_that_reads_slowly_gets_everything(
    cluster: Cluster, tmp_path: Path, kind: str, size: int
) -> None:
    settings: dict[str, Any] = {} if kind == "tcp" else {"listen": f"unix!{tmp_path}/gateway.sock"}
    got = bytearray()
    async with serving(cluster, MadeUp([flood()]), write_timeout="1s", **settings) as served:
        with client(served) as sock:
            await ask(sock, connection="close")
            for _ in range(50):  # too little at a time to make the kernel take more from the gateway
                got += await read(sock, size)
                await asyncio.sleep(0.03)  # the client is slow: that is what is tested
            while data := await read(sock):
                got += data
    body = bytes(got).partition(b"\r\n\r\n")[2]
    assert body.count(b"data: x") == MANY
    assert body.endswith(DONE + b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("ends", ["close", "keep-alive"])
async def test_the_end_of_an_answer_that_nobody_reads_is_not_kept_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr("llambo.gateway.server._KEEP_ALIVE_S", 0.2)
    relays = MadeUp([Reply((b"x" * 20_000_000,), content_type="application/json")])
    async with serving(cluster, relays, write_timeout="200ms") as served:
        with client(served) as sock:
            await ask(sock, connection=ends)
            async with asyncio.timeout(10):
                await relays.closed.wait()
            await no_connection(served)
            assert served.gateway.streams.running == 0


async def test_to_a_client_of_http_1_0_a_stream_is_its_events_and_the_end_of_the_connection(cluster: Cluster) -> None:
    async with serving(cluster, MadeUp([Reply([PIECE, DONE])])) as served:
        with client(served) as sock:
            body = json.dumps({"messages": [{"role": "user", "content": "hello"}], "stream": True}).encode()
            request = header(CHAT, "POST", content_length=str(len(body))).replace(b"HTTP/1.1", b"HTTP/1.0") + body
            await asyncio.get_running_loop().sock_sendall(sock, request)
            got = b""
            while data := await read(sock):
                got += data
    head, _, body = got.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head
    assert body == PIECE + DONE
