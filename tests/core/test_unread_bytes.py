"""What a client has not read is known, wherever it waits."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop

from llambo.core.unread import unread_bytes

BIG = b"x" * 4_000_000  # more than the kernel takes


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        return listener.accept()[0], client


async def _falls_with_every_read(pair: Callable[[], tuple[socket.socket, socket.socket]]) -> None:
    ours, theirs = pair()
    ours.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=ours)
    transport = cast(asyncio.Transport, transport)
    assert unread_bytes(transport) == 0
    transport.write(BIG)
    await asyncio.sleep(0)
    waiting, before = transport.get_write_buffer_size(), unread_bytes(transport)
    assert before >= waiting
    got = 0
    with theirs:
        while got < 150_000:  # too little for the kernel to take more from us
            got += len(theirs.recv(50_000))
        assert transport.get_write_buffer_size() == waiting, "the transport's own buffer does not tell"
        assert unread_bytes(transport) < before
        transport.abort()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_unix_socket_tells_what_is_not_read(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    run(new_loop, _falls_with_every_read(socket.socketpair))


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_tcp_socket_tells_what_is_not_read(new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    run(new_loop, _falls_with_every_read(tcp_pair))


def run(new_loop: Callable[[], asyncio.AbstractEventLoop], main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main)
