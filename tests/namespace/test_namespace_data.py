"""How long sessions live, questions on `data`, and what a stop of the cluster does to answers."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from llambo.core.errors import BadRequest, NameInUse, Overloaded
from llambo.core.types import Message
from llambo.namespace import answer
from llambo.ninep.client import AsyncClient
from tests.namespace.conversations import TEXT, first_read, session
from tests.namespace.namespace_world import WAIT_S, World, names, served, until


async def test_a_kept_session_outlives_its_maker_until_it_is_idle(tmp_path: Path) -> None:
    async with served(tmp_path, idle_s=0.2) as world, await world.client() as client:
        async with AsyncExitStack() as held:
            async with session(client) as (ctl, path):
                await ctl.write("keep")
                await held.enter_async_context(client.open(f"{path}/prompt"))
            await asyncio.sleep(0.5)  # more than the limit: an open file is not idleness
            assert await names(client, "sessions") == ["0"]
        await until(lambda: "0" not in world.namespace._house.sessions.by_name)


async def test_a_kept_session_ends_with_the_connection_of_nobody(world: World) -> None:
    async with await world.client() as maker, session(maker) as (ctl, path):
        await ctl.write("keep")
        await maker.write_file(f"{path}/prompt", "Hello")
    async with await world.client() as other:
        assert (await other.read_file(f"{path}/stream")).decode() == TEXT


async def test_data_is_one_question_and_its_answer_on_one_fid(world: World, client: AsyncClient) -> None:
    async with client.open("data", "rw") as data:
        await data.write("What ")
        await data.write("now?\n")
        assert (await data.read_all()).decode() == TEXT
        assert await data.read() == b""
        with pytest.raises(NameInUse, match="open data anew"):
            await data.write("more")
    assert world.cluster.requests[0].messages == (Message("user", "What now?"),)
    async with client.open("data", "rw") as data:
        with pytest.raises(BadRequest, match="the prompt is empty"):
            await data.read()
    assert await client.read_file("error") == b"invalid argument: the prompt is empty: write it first\n"


@pytest.mark.parametrize("how", ["flush", "clunk"])
async def test_leaving_data_ends_its_generation(world: World, client: AsyncClient, how: str) -> None:
    world.cluster.gate.clear()
    async with client.open("data", "rw") as data:
        await data.write("Hello")
        reading = await first_read(data, client, world)
        if how == "flush":
            reading.cancel()
            async with asyncio.timeout(WAIT_S):
                await world.cluster.closed.wait()
    async with asyncio.timeout(WAIT_S):
        await world.cluster.closed.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_a_reader_that_stops_reading_holds_up_nobody(world: World, client: AsyncClient) -> None:
    world.cluster.pieces = ["x" * 10_000] * 100
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as lazy:
            assert await lazy.read()
            async with client.open(f"{path}/reply") as reply:
                assert len(await reply.read_all()) == 1_000_000


async def test_after_a_stop_nothing_new_is_asked_and_what_goes_on_may_end(world: World, client: AsyncClient) -> None:
    world.cluster.gate.clear()
    async with client.open("data", "rw") as data:
        await data.write("Hello")
        reading = asyncio.create_task(data.read_all())
        await until(lambda: world.cluster.requests)
        finishing = asyncio.create_task(world.namespace.finish(WAIT_S))
        await asyncio.sleep(0)
        async with client.open("data", "rw") as late:
            await late.write("Hello")
            with pytest.raises(Overloaded, match="shutting down"):
                await late.read()
        world.cluster.gate.set()
        assert (await reading).decode() == TEXT
        await finishing


async def test_a_stop_waits_for_who_still_reads_an_answer_that_is_whole(world: World, client: AsyncClient) -> None:
    world.cluster.pieces = ["x" * 10_000] * 10
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as stream:
            text = await stream.read()
            await until(lambda: world.cluster.closings)
            finishing = asyncio.create_task(world.namespace.finish(WAIT_S))
            async with client.open(f"{path}/reply") as reply:
                assert len(await reply.read_all()) == 100_000
                assert not finishing.done(), "the stream is not read to its end"
                text += await stream.read_all()
            await finishing
    assert text == b"x" * 100_000


@pytest.mark.parametrize("how", ["closed", "given up", "hurried"])
async def test_a_stop_does_not_wait_for_who_reads_no_more(
    world: World, client: AsyncClient, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(answer, "UNREAD_S", 0.01 if how == "given up" else WAIT_S * 10)
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with AsyncExitStack() as opened:
            stream = await opened.enter_async_context(client.open(f"{path}/stream"))
            assert await stream.read()
            await until(lambda: world.cluster.closings)
            finishing = asyncio.create_task(world.namespace.finish(WAIT_S * 10))
            await asyncio.sleep(0)
            match how:
                case "closed":
                    await opened.aclose()
                case "hurried":
                    await world.namespace.finish(0)
            async with asyncio.timeout(WAIT_S):
                await finishing


async def test_a_stop_cancels_what_takes_too_long(world: World, client: AsyncClient) -> None:
    world.cluster.gate.clear()
    async with client.open("data", "rw") as data:
        await data.write("Hello")
        reading = await first_read(data, client, world)
        await world.namespace.finish(0.01)
        assert world.cluster.closings == 1
        assert await reading == b""
