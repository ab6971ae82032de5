"""The cluster's ctl: commands take effect before their write returns, and refusals are one sentence."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from llambo.core.errors import BadRequest, LlamboError, NotFound
from llambo.namespace import ctls
from llambo.ninep.client import AsyncClient
from tests.namespace.namespace_world import WAIT_S, World, names, until


async def test_reading_gives_the_grammar_one_command_a_line(client: AsyncClient) -> None:
    assert (await client.read_file("ctl")).decode() == ctls.CLUSTER.text()
    assert (await client.read_file("nodes/n1/ctl")).decode() == ctls.NODE.text()
    assert (await client.read_file("models/m/ctl")).decode() == ctls.MODEL.text()


async def test_each_command_reaches_the_cluster_with_its_arguments(world: World, client: AsyncClient) -> None:
    cluster = world.cluster
    for line, call in {
        "spawn 2 tiny model=m slots=3": ("spawn", 2, "tiny", "m", 3),
        "scale 3 m": ("scale", 3, "m"),
        "attach http://h tiny key=s3cret key_env=K": ("attach", "http://h", "tiny", "s3cret", "K"),
        "pin m": ("pin", "m", True),
        "unpin m": ("pin", "m", False),
        "restore /there": ("restore", Path("/there")),
        "restore": ("restore", None),
        "restart n1": ("restart", "n1"),
        "drain n1": ("drain", "n1"),
        "kill n2": ("kill", "n2"),
        "detach n3": ("detach", "n3"),
    }.items():
        await client.write_file("ctl", line)
        assert cluster.calls[-1] == call
    await client.write_file("ctl", "balancer round-robin\n")
    assert cluster.strategy == "round-robin"
    assert world.stops == []
    await client.write_file("ctl", "shutdown")
    assert world.stops == [True]


async def test_a_write_returns_when_the_command_has_taken_effect(world: World, client: AsyncClient) -> None:
    world.cluster.hold.clear()
    writing = asyncio.create_task(client.write_file("ctl", "spawn 1"))
    await until(lambda: world.cluster.calls)
    assert await names(client, "nodes") == ["n1"]
    assert not writing.done()
    world.cluster.hold.set()
    await writing
    assert await names(client, "nodes") == ["n1", "n2"]


async def test_a_write_that_is_flushed_takes_its_command_back(world: World, client: AsyncClient) -> None:
    world.cluster.hold.clear()
    writing = asyncio.create_task(client.write_file("ctl", "spawn 1"))
    await until(lambda: world.cluster.calls)
    writing.cancel()
    async with asyncio.timeout(WAIT_S):
        await world.cluster.cancelled.wait()
    assert await names(client, "nodes") == ["n1"]


async def test_several_lines_run_in_order_and_the_first_that_fails_ends_them(world: World, client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="no node is called 'n9'"):
        await client.write_file("ctl", "spawn 1\n\npin m\nkill n9\nkill n1\n")
    assert [call[0] for call in world.cluster.calls] == ["spawn", "pin", "kill"]
    assert await names(client, "nodes") == ["n1", "n2"]


async def test_what_a_command_has_to_say_is_read_on_the_fid_that_wrote_it(client: AsyncClient) -> None:
    async with client.open("ctl", "rw") as ctl:
        await ctl.write("spawn 2")
        assert await ctl.read_all() == b"n2\nn3\n"
        assert await ctl.read() == b""
        await ctl.write("checkpoint")
        assert await ctl.read(offset=0) == b"/usual\n"
        await ctl.write("checkpoint /elsewhere")
        assert await ctl.read(3) == b"/el"
        assert await ctl.read_all() == b"sewhere\n"
        await ctl.write("attach http://h\nscale 1")
        assert await ctl.read_all() == b"n1\nn1\nn2\nn3\n"


async def test_progress_is_among_the_events(client: AsyncClient) -> None:
    async with client.open("events") as events:
        await client.write_file("ctl", "spawn 2")
        lines = b""
        while lines.count(b"\n") < 2:
            lines += await events.read()
        assert [line.split(b" ", 1)[1] for line in lines.splitlines()] == [
            b"progress command=spawn ready=1 wanted=2",
            b"progress command=spawn ready=2 wanted=2",
        ]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("explode", "unknown command 'explode'; there are spawn, scale, attach, "),
        ("spawn", "spawn needs N; write: spawn N"),
        ("spawn 0", "count must be at least 1, not 0"),
        ("balancer chance", "there is no strategy 'chance'; there are random, round-robin"),
        ("checkpoint here", "checkpoint: PATH begins with /, not 'here'"),
        (b"\xff", "a command is UTF-8 text, byte 0 is none"),
    ],
)
async def test_a_wrong_command_is_refused_and_kept_in_error(
    client: AsyncClient, line: str | bytes, complaint: str
) -> None:
    with pytest.raises(BadRequest) as refusal:
        await client.write_file("ctl", line)
    assert refusal.value.message.startswith(complaint)
    assert (await client.read_file("error")).decode() == f"invalid argument: {refusal.value.message}\n"


async def test_what_a_restore_could_not_bring_back_is_told(world: World, client: AsyncClient) -> None:
    world.cluster.problems = ["model a is gone", "model b too"]
    with pytest.raises(LlamboError) as refusal:
        await client.write_file("ctl", "restore")
    assert "model a is gone; model b too" in refusal.value.message


async def test_a_key_is_shown_nowhere(world: World, client: AsyncClient, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with client.open("events") as events:
        async with client.open("ctl", "rw") as ctl:
            await ctl.write("attach http://h key=s3cret")
            assert await ctl.read_all() == b"n1\n"
            for line in ("attach nowhere key=s3cret", "attach http://h tiny x s3cret", "attach http://h kye=s3cret"):
                with pytest.raises(BadRequest) as refusal:
                    await ctl.write(line)
                assert "s3cret" not in refusal.value.message
        await client.write_file("ctl", "spawn 1")
        assert b"s3cret" not in await events.read()
    for path in ("ctl", "error", "status", "status.json", "nodes.json", "config", "checkpoint"):
        assert b"s3cret" not in await client.read_file(path)
    assert "s3cret" not in caplog.text


async def test_load_on_a_node_starts_the_new_one_before_the_old_one_goes(world: World, client: AsyncClient) -> None:
    await client.write_file("nodes/n1/ctl", "load other")
    assert world.cluster.calls == [("spawn", 1, "tiny", "other", 0), ("drain", "n1")]
    await client.write_file("nodes/n2/ctl", "restart")
    await client.write_file("nodes/n2/ctl", "free")
    assert world.cluster.calls[2:] == [("restart", "n2"), ("kill", "n2")]


async def test_a_zero_length_write_is_nothing(world: World, client: AsyncClient) -> None:
    async with client.open("ctl", "a") as ctl:
        assert await ctl.write(b"") == 0
        assert await ctl.write("\n") == 1
    assert world.cluster.calls == []
