"""Conversations as files: clone, sessions/N and data; what ends a generation, and what does not."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from llambo.core.errors import BadRequest, NameInUse, NotFound, Overloaded, TimedOut, TooLarge
from llambo.core.types import Message
from llambo.ninep.client import AsyncClient
from tests.namespace.conversations import TEXT, Gate, first_read, session
from tests.namespace.namespace_world import WAIT_S, World, names, until


async def test_a_clone_is_the_ctl_of_a_new_session_and_its_end_is_the_sessions(client: AsyncClient) -> None:
    async with client.open("clone", "rw") as first, client.open("clone", "rw") as second:
        assert (await first.read_all(), await second.read_all()) == (b"0\n", b"1\n")
        assert await names(client, "sessions") == ["0", "1"]
        await second.write("max_tokens 7\n")
        assert await client.read_file("sessions/1/ctl") == b"max_tokens 7\n"
        assert (await client.stat("sessions/1/ctl")).name == "ctl"
    assert await names(client, "sessions") == []
    async with client.open("clone", "rw") as third:
        assert await third.read() == b"2\n"


async def test_settings_are_what_was_written_and_go_into_the_request(world: World, client: AsyncClient) -> None:
    lines = "max_tokens 5\ntemperature 0.5\ntop_p 0.9\nseed 3\nmodel m\nsystem You are  terse.\ntimeout 2.5\nkeep\n"
    async with session(client) as (ctl, path):
        await ctl.write(lines)
        assert (await client.read_file(f"{path}/ctl")).decode() == lines
        await client.write_file(f"{path}/prompt", "Hello\n")
        assert (await client.read_file(f"{path}/stream")).decode() == TEXT
    (request,) = world.cluster.requests
    assert request.messages == (Message("system", "You are  terse."), Message("user", "Hello"))
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p, sampling.seed) == (5, 0.5, 0.9, 3)
    assert (request.model, request.session, request.interface) == ("m", "styx-0", "styx")


async def test_a_raw_prompt_is_sent_as_it_is_and_nothing_beside_it(world: World, client: AsyncClient) -> None:
    async with session(client) as (ctl, path):
        await client.write_file(f"{path}/prompt", "first")
        await client.read_file(f"{path}/stream")
        await ctl.write("raw on\nseed 3\n")
        assert await client.read_file(f"{path}/ctl") == b"seed 3\nraw on\n"
        await client.write_file(f"{path}/prompt", "Once upon a")
        await client.read_file(f"{path}/stream")
        await ctl.write("system You are terse.\n")
        await client.write_file(f"{path}/prompt", "more")
        with pytest.raises(BadRequest, match="a raw prompt takes no system prompt: write raw off"):
            await ctl.write("send\n")
        await ctl.write("raw off\nsend\n")
        assert (await client.read_file(f"{path}/reply")).decode() == TEXT
    _, raw, last = world.cluster.requests
    assert (raw.raw_prompt, raw.messages, raw.sampling.seed) == ("Once upon a", (), 3)
    assert last.raw_prompt is None
    assert [message.content for message in last.messages] == [
        "You are terse.",
        "first",
        TEXT,
        "Once upon a",
        TEXT,
        "more",
    ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("raw", "raw needs on|off; write: raw on|off"),
        ("raw true", "raw is on or off, not 'true'"),
        ("max_tokens 0", "max_tokens must be between 1 and 1048576, not 0"),
        ("temperature nan", "temperature must be between 0.0 and 5.0, not nan"),
        ("top_p 2", "top_p must be between 0.0 and 1.0, not 2.0"),
        ("timeout -1", "timeout must be between 0 and 86400 seconds, not -1"),
        ("timeout nan", "timeout must be between 0 and 86400 seconds, not nan"),
        ("send", "the prompt is empty: write it first"),
        ("system", "system needs TEXT; write: system TEXT"),
        ("dance", "unknown command 'dance'; there are max_tokens, temperature, "),
    ],
)
async def test_a_wrong_setting_is_refused_and_kept_in_both_error_files(
    client: AsyncClient, line: str, complaint: str
) -> None:
    async with session(client) as (ctl, path):
        with pytest.raises(BadRequest) as refusal:
            await ctl.write(line)
        assert refusal.value.message.startswith(complaint)
        for file in (f"{path}/error", "error"):
            assert (await client.read_file(file)).decode() == f"invalid argument: {refusal.value.message}\n"


async def test_a_conversation_goes_on_with_what_was_said(world: World, client: AsyncClient) -> None:
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "first\nline")
        assert await client.read_file(f"{path}/prompt") == b"first\nline"
        assert b"state pending\n" in await client.read_file(f"{path}/status")
        assert (await client.read_file(f"{path}/stream")).decode() == TEXT
        assert await client.read_file(f"{path}/prompt") == b""
        await client.write_file(f"{path}/prompt", "second")
        await client.read_file(f"{path}/stream")
        assert [message.role for message in world.cluster.requests[1].messages] == ["user", "assistant", "user"]
        history = (await client.read_file(f"{path}/history")).decode()
        assert history == f"user\n\tfirst\n\tline\nassistant\n\t{TEXT}\nuser\n\tsecond\nassistant\n\t{TEXT}\n"
        status = (await client.read_file(f"{path}/status")).decode()
        assert status.startswith("state done\nnode n1\ntokens 3\nprompt_tokens 5\ncached_tokens 2\nttft_ms 1.5\n")


async def test_a_prompt_is_written_in_any_pieces_and_begun_anew_by_truncation(
    world: World, client: AsyncClient
) -> None:
    async with session(client) as (ctl, path):
        await client.write_file(f"{path}/prompt", "dropped")
        euro = "€uro".encode()
        async with client.open(f"{path}/prompt", "w") as prompt:
            for piece in (euro[:1], euro[1:2], euro[2:]):
                await prompt.write(piece)
        await client.write_file(f"{path}/prompt", " and more", "a")
        await ctl.write("send")
        assert (await client.read_file(f"{path}/reply")).decode() == TEXT
        assert world.cluster.requests[0].messages[-1].content == "€uro and more"
        await client.write_file(f"{path}/prompt", b"\xff")
        with pytest.raises(BadRequest, match="UTF-8 text, byte 0"):
            await ctl.write("send")


async def test_a_prompt_may_be_written_as_a_json_string(world: World, client: AsyncClient) -> None:
    async with session(client) as (_, path):
        for written in ('"two\\nlines"\n', '"quoted" it is not'):
            await client.write_file(f"{path}/prompt", written)
            await client.read_file(f"{path}/stream")
    first, second = (request.messages[-1].content for request in world.cluster.requests)
    assert (first, second) == ("two\nlines", '"quoted" it is not')


async def test_a_prompt_has_a_limit(client: AsyncClient) -> None:
    async with session(client) as (_, path), client.open(f"{path}/prompt", "w") as prompt:
        with pytest.raises((TooLarge, BadRequest), match="at most 4 MiB"):
            for _ in range(5):
                await prompt.write(b"x" * (1 << 20))


async def test_tokens_are_read_as_they_come_and_a_second_reader_has_them_from_the_start(
    world: World, client: AsyncClient
) -> None:
    world.cluster.gate = gate = Gate(0)
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as first:
            reading = asyncio.create_task(first.read())
            assert b"state waiting\n" in await client.read_file(f"{path}/status")
            gate.let_through()
            assert await reading == b"one "
            gate.set()
            assert (await first.read_all()).decode() == "two drei€"
            async with client.open(f"{path}/stream") as second:
                assert (await second.read_all()).decode() == TEXT
            assert [await first.read(), await first.read()] == [b"", b""]
        assert len(world.cluster.requests) == 1


async def test_a_character_is_never_cut(client: AsyncClient) -> None:
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as file:
            pieces = []
            while piece := await file.read(4):
                pieces.append(piece.decode())
        assert "".join(pieces) == TEXT


async def test_reply_blocks_until_the_answer_is_whole(world: World, client: AsyncClient) -> None:
    world.cluster.gate.clear()
    async with session(client) as (ctl, path):
        with pytest.raises(BadRequest, match="nothing was asked yet"):
            await client.read_file(f"{path}/reply")
        await client.write_file(f"{path}/prompt", "Hello")
        await ctl.write("send")
        async with client.open(f"{path}/reply") as reply:
            reading = asyncio.create_task(reply.read())
            await client.read_file("status")
            assert not reading.done()
            world.cluster.gate.set()
            assert (await reading).decode() == TEXT


async def test_while_an_answer_is_generated_there_is_no_other_of_its_session(world: World, client: AsyncClient) -> None:
    world.cluster.gate.clear()
    async with session(client) as (ctl, path):
        await client.write_file(f"{path}/prompt", "first")
        await ctl.write("send")
        await client.write_file(f"{path}/prompt", "second")
        with pytest.raises(NameInUse, match="an answer is being generated"):
            await ctl.write("send")
        async with client.open(f"{path}/stream") as stream:
            world.cluster.gate.set()
            assert (await stream.read_all()).decode() == TEXT
        assert b"state pending\n" in await client.read_file(f"{path}/status")
        assert len(world.cluster.requests) == 1


@pytest.mark.parametrize("how", ["flush", "clunk", "hang-up"])
async def test_flush_clunk_and_hang_up_end_the_generation(world: World, client: AsyncClient, how: str) -> None:
    world.cluster.gate.clear()
    async with session(client) as (_, path), await world.client() as other:
        await client.write_file(f"{path}/prompt", "Hello")
        async with contextlib.AsyncExitStack() as files:
            stream = await files.enter_async_context(other.open(f"{path}/stream"))
            reading = await first_read(stream, other, world)
            match how:
                case "flush":
                    reading.cancel()
                case "clunk":
                    await files.aclose()
                case "hang-up":
                    files.pop_all()
                    await other.close()
            async with asyncio.timeout(WAIT_S):
                await world.cluster.closed.wait()
            if how == "flush":
                assert await stream.read() == b"", "what is left of it is its end"
            await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: world.namespace._house.sessions.by_name["0"].state == "pending")
        assert await client.read_file(f"{path}/prompt") == b"Hello", "nothing came of it"
        assert await client.read_file(f"{path}/history") == b""


async def test_a_reader_that_goes_ends_nothing_while_another_reads(world: World, client: AsyncClient) -> None:
    world.cluster.gate.clear()
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as stays:
            async with client.open(f"{path}/stream") as goes:
                reading = await first_read(goes, client, world)
                reading.cancel()
            world.cluster.gate.set()
            assert (await stays.read_all()).decode() == TEXT


async def test_cancel_keeps_what_has_arrived(world: World, client: AsyncClient) -> None:
    world.cluster.gate = Gate(1)
    async with session(client) as (ctl, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as stream:
            assert await stream.read() == b"one "
            await ctl.write("cancel")
            assert world.cluster.closings == 1
            assert await stream.read() == b""
        assert b"state cancelled\n" in await client.read_file(f"{path}/status")
        assert await client.read_file(f"{path}/history") == b"user\n\tHello\nassistant\n\tone \n"
        await ctl.write("cancel")
        await ctl.write("clear")
        assert await client.read_file(f"{path}/history") == b""


async def test_an_answer_that_fails_is_an_error_for_its_readers_and_can_be_asked_again(
    world: World, client: AsyncClient
) -> None:
    world.cluster.pieces = [Overloaded("the queue is full")]
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        with pytest.raises(Overloaded) as refusal:
            await client.read_file(f"{path}/stream")
        assert refusal.value.message == "the queue is full"
        assert await client.read_file(f"{path}/error") == b"overloaded: the queue is full\n"
        world.cluster.pieces = ["fine"]
        assert await client.read_file(f"{path}/stream") == b"fine"


async def test_an_answer_that_breaks_off_gives_what_had_come_and_then_the_error(
    world: World, client: AsyncClient
) -> None:
    world.cluster.pieces = ["half ", Overloaded("gone")]
    async with session(client) as (_, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as stream:
            assert await stream.read() == b"half "
            for _ in range(2):
                with pytest.raises(Overloaded):
                    await stream.read()


async def test_timeout_bounds_a_read_and_ends_nothing(world: World, client: AsyncClient) -> None:
    world.cluster.gate.clear()
    async with session(client) as (ctl, path):
        await ctl.write("timeout 0.05")
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as stream:
            with pytest.raises(TimedOut, match=r"nothing came within 0.05 s"):
                await stream.read()
            await ctl.write("timeout 0")
            world.cluster.gate.set()
            assert (await stream.read_all()).decode() == TEXT


async def test_hangup_ends_the_generation_and_the_session(world: World, client: AsyncClient) -> None:
    world.cluster.gate.clear()
    async with session(client) as (ctl, path):
        await client.write_file(f"{path}/prompt", "Hello")
        async with client.open(f"{path}/stream") as stream, client.open(f"{path}/prompt", "a") as prompt:
            await first_read(stream, client, world)
            await ctl.write("hangup")
            assert world.cluster.closings == 1
            with pytest.raises(NotFound):
                await prompt.write("more")
        with pytest.raises(NotFound):
            await ctl.write("send")
        with pytest.raises(NotFound):
            await client.stat(path)
