"""Clients that are many, slow, or never read."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from bridge_fakes import PATIENCE_S, Running, running_bridge

from llambo.bridge.settings import BridgeSettings

IMPATIENT = BridgeSettings(write_buffer_bytes=1 << 16, write_timeout_s=0.2)


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_five_hundred_connections_at_once_are_all_served(path: Path) -> None:
    async with running_bridge(path) as bridge:
        clients = await asyncio.gather(*(bridge.client() for _ in range(500)))
        answers = await asyncio.gather(*(client.ask("INFER hello") for client in clients))
        assert all(answer["data"] == "hello" for answer in answers)


async def test_a_connection_too_many_is_told_and_closed(path: Path) -> None:
    async with running_bridge(path, settings=BridgeSettings(max_connections=2)) as bridge:
        first, second = await bridge.client(), await bridge.client()
        await first.ask("PING")
        await second.ask("PING")
        third = await bridge.client()
        (answer,) = await third.rest()
        assert answer["code"] == "overloaded"
        await first.close()
        await until_served(bridge)


async def until_served(bridge: Running) -> None:
    """Comes back until there is room; a client that is turned away may find its connection closed already."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            client = await bridge.client()
            with contextlib.suppress(OSError, AssertionError):
                if (await client.ask("PING"))["status"] == "ok":
                    return
            await client.close()


def send_and_never_read(path: Path, data: bytes) -> socket.socket:
    """A client that has sent as much of `data` as the bridge takes."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(str(path))
    client.setblocking(False)
    client.send(data)
    return client


@pytest.mark.parametrize("many", [1, 4])
async def test_clients_that_never_read_give_their_slots_back(path: Path, many: int) -> None:
    async with running_bridge(path, settings=IMPATIENT) as bridge:
        clients = [send_and_never_read(path, b"INFER_STREAM endless\n") for _ in range(many)]
        await bridge.door.until_active(many)
        await bridge.door.until_active(0)
        assert (await (await bridge.client()).ask("INFER hello"))["data"] == "hello"
        for client in clients:
            client.close()


@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_client_that_does_not_take_its_answers_is_dropped(path: Path, half_closed: bool) -> None:
    one_client = BridgeSettings(max_connections=1, write_buffer_bytes=1 << 20, write_timeout_s=0.2)
    async with running_bridge(path, settings=one_client) as bridge:
        # Half closed: the answers fit into the buffer, and only closing waits for them.
        client = send_and_never_read(path, b"STATUS\n" * (2000 if half_closed else 20_000))
        if half_closed:
            client.shutdown(socket.SHUT_WR)
        await until_served(bridge)
        client.close()


async def test_a_slow_reader_slows_only_itself(path: Path) -> None:
    async with running_bridge(path, settings=BridgeSettings(write_buffer_bytes=1 << 16)) as bridge:
        slow, other = await bridge.client(), await bridge.client()
        slow.send("INFER_STREAM endless\n")
        await bridge.door.until_active(1)
        for _ in range(20):
            assert (await other.ask("INFER hello"))["data"] == "hello"
        await slow.line()
        for _ in range(2000):
            assert len((await slow.line())["token"]) == 1000
        slow.send("CANCEL\n")


@pytest.mark.parametrize("is_binary", [False, True])
async def test_a_reader_that_is_slow_and_never_stands_still_is_not_dropped(path: Path, is_binary: bool) -> None:
    loop = asyncio.get_running_loop()
    async with running_bridge(path, settings=BridgeSettings(write_buffer_bytes=1 << 16, write_timeout_s=1)) as bridge:
        client = await bridge.client()
        if is_binary:
            await client.hello()
            client.send_frame(id=1, op="infer_stream", prompt="endless")
        else:
            client.send("INFER_STREAM endless\n")
        await bridge.door.until_active(1)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sock = client.writer.get_extra_info("socket").dup()
        sock.setblocking(False)
        for _ in range(40):  # too little at a time to make the kernel take more from the bridge
            assert await loop.sock_recv(sock, 4096)
            await asyncio.sleep(0.05)  # the client is slow: that is what is tested
        assert bridge.door.active == 1, "its stream goes on"
        sock.close()


async def test_what_is_sent_ahead_is_answered_in_full(path: Path) -> None:
    async with running_bridge(path, settings=BridgeSettings(write_buffer_bytes=1 << 16)) as bridge:
        client = await bridge.client()
        client.send("INFER hello\n" + "PING\n" * 20_000 + "INFER bye\n")
        answers = [await client.line() for _ in range(20_002)]
        assert [answers[0]["data"], answers[-1]["data"]] == ["hello", "bye"]
        assert all(answer["data"] == "pong" for answer in answers[1:-1])


async def test_long_lines_sent_ahead_are_answered_in_full(path: Path) -> None:
    async with running_bridge(path) as bridge:
        client = await bridge.client()
        text = "x" * (1 << 19)
        client.send("".join(f"INFER {number}{text}\n" for number in range(20)))
        for number in range(20):
            assert (await client.line())["data"] == f"{number}{text}"


async def test_a_client_that_stopped_reading_a_stream_can_cancel_it(path: Path) -> None:
    async with running_bridge(path, settings=BridgeSettings(write_buffer_bytes=4096)) as bridge:
        client = await bridge.client()
        await client.hello()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send_frame(id=1, op="infer_stream", prompt="endless")
        await bridge.door.until_active(1)
        (session,) = bridge.server._house.sessions
        while session.is_writable:
            await asyncio.sleep(0)
        client.send_frame(id=2, op="cancel", target=1)
        await bridge.door.until_active(0)
