"""The asynchronous client: many requests on one connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import pytest
from bridge_fakes import PATIENCE_S, Running, bridge_of_another_user, deaf_bridge

from llambo.bridge import async_link
from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.client_calls import Token
from llambo.core.errors import BadRequest, LlamboError, NodeLost, NotFound, Overloaded, Refused, TimedOut, Unreachable


async def test_every_call_works(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        await client.ping()
        assert (await client.get_status())["slots"] == 4
        assert [model["name"] for model in await client.models()] == ["fake"]
        assert (await client.load_model("/m/x.gguf", "second", ctx=64))["name"] == "second"
        await client.free_model("second")
        assert await client.infer("hello world") == "hello world"
        assert (await client.complete("hello world")).tokens == 2
        assert await client.infer_multi(["a", "b c"]) == ["a", "b c"]
        assert await client.tokenize("ab") == [97, 98]
        assert await client.embed("ab") == [0.6, 0.8]
        with pytest.raises(NotFound):
            await client.cancel("nothing")
        seen: list[Token] = []
        assert (await client.infer_stream("a b", seen.append)).text == "a b"
        assert [token.text async for token in client.stream("a b")] == [token.text for token in seen]


async def test_connect_can_be_awaited_too(bridge: Running) -> None:
    client = await AsyncBridge.connect(str(bridge.path))
    await client.ping()
    await client.disconnect()
    await client.disconnect()
    with pytest.raises(Unreachable, match="closed here"):
        await client.ping()


async def test_a_hundred_requests_share_a_connection(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        answers = await asyncio.gather(*(client.infer(f"hello {number}") for number in range(100)))
        assert answers == [f"hello {number}" for number in range(100)]
        async with aclosing(client.stream("endless")) as endless:
            await anext(endless)
            assert await client.infer("hello") == "hello", "a stream that nobody reads holds up no other"
        await bridge.door.until_active(0)


async def test_a_task_that_is_cancelled_cancels_its_request(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        task = asyncio.create_task(client.infer("hold"))
        await bridge.door.until_active(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await bridge.door.until_active(0)
        await client.ping()


async def test_a_call_that_takes_too_long_is_cancelled(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        with pytest.raises(TimedOut):
            await client.infer("hold", timeout_s=0.05)
        await bridge.door.until_active(0)


async def test_waiting_to_send_belongs_to_the_time_of_a_call(path: Path) -> None:
    with deaf_bridge(path):
        async with AsyncBridge.connect(str(path)) as client:
            stuck = asyncio.create_task(client.infer("x" * (4 << 20)))
            while client._link._can_write.is_set():
                await asyncio.sleep(0)
            with pytest.raises(TimedOut):
                await asyncio.wait_for(client.ping(timeout_s=0.05), PATIENCE_S)
            with pytest.raises(TimedOut):
                await asyncio.wait_for(anext(client.stream("x", timeout_s=0.05)), PATIENCE_S)
        with pytest.raises(Unreachable):
            await stuck


async def test_text_that_is_none_is_told_and_the_connection_goes_on(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: client.infer("\ud800"),
            lambda: client.infer("x", system="\ud800"),
            lambda: client.infer_stream("\ud800", print),
            lambda: client.infer_multi(["x", "\ud800"]),
            lambda: client.load_model("/m/\udcff.gguf"),
            lambda: client.embed("x", model="\ud800"),
        ]
        for call in calls:
            with pytest.raises(BadRequest, match="is not valid Unicode text"):
                await call()
        await client.ping()
    for where, token in (("tcp!127.0.0.1!1", "\ud800"), ("/\ud800", ""), ("tcp!\ud800!1", "")):
        with pytest.raises((BadRequest, Unreachable)):
            await AsyncBridge.connect(where, token=token)


async def test_another_user_is_told_nothing() -> None:
    with bridge_of_another_user() as (path, told):
        with pytest.raises(Refused, match=rf"{path} .*uid 65534"):
            await AsyncBridge.connect(path, timeout_s=PATIENCE_S)
        assert told() == "b''\n"


async def test_errors_have_the_classes_of_the_bridge(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        with pytest.raises(BadRequest):
            await client.infer("x", top_p=2)
        with pytest.raises(NodeLost):
            await client.infer_stream("fail", lambda token: None)


async def test_a_stream_whose_reader_is_far_behind_ends_alone(bridge: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_link, "MAX_WAITING_ANSWERS", 50)
    async with AsyncBridge.connect(str(bridge.path)) as client:
        async with aclosing(client.stream("endless")) as endless:
            await anext(endless)
            await bridge.door.until_active(0)
            with pytest.raises(Overloaded, match="behind"):
                async for _ in endless:
                    pass
        assert await client.infer("hello") == "hello"


async def test_a_bridge_that_vanishes_fails_every_request(bridge: Running) -> None:
    async with AsyncBridge.connect(str(bridge.path)) as client:
        tasks = [asyncio.create_task(client.infer("hold")) for _ in range(3)]
        await bridge.door.until_active(3)
        await bridge.server.stop(0)
        for task in tasks:
            with pytest.raises((Overloaded, Unreachable)):
                await task
        with pytest.raises(Unreachable, match="gone"):
            await client.ping()


async def test_nothing_listening_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"none\.sock .*llamboctl bridge start"):
        await AsyncBridge.connect(str(tmp_path / "none.sock"))
    with pytest.raises(Unreachable):
        async with AsyncBridge.connect("tcp!127.0.0.1!1"):
            pass


async def test_a_peer_that_closes_or_is_silent_or_is_something_else_is_told(path: Path) -> None:
    answer = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, str(path)):
        with pytest.raises(Unreachable, match="gone"):
            await AsyncBridge.connect(str(path))
        answer = b"220 mail.example ESMTP\r\n"
        with pytest.raises(LlamboError, match="does not speak"):
            await AsyncBridge.connect(str(path))
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(TimedOut):
            await AsyncBridge.connect(str(path), timeout_s=0.05)


async def test_a_connection_attempt_can_be_cancelled(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await AsyncBridge.connect(str(path), timeout_s=PATIENCE_S)
