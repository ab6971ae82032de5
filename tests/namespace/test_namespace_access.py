"""Who sees what: the owner of the socket everything, others what their token says; subtrees by aname."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from llambo.core.errors import NotFound, Refused
from llambo.namespace.server import split_aname
from llambo.ninep.client import AsyncClient
from llambo.ninep.errors import FileError
from llambo.ninep.tree import Peer
from tests.namespace.namespace_world import World, names

LOOKS = {"status", "status.json", "nodes.json", "metrics", "events", "config", "error", "nodes", "models"}
CONVERSATIONS = {"data", "clone", "sessions", "fusion"}
CONTROL = {"ctl", "checkpoint"}


@pytest.mark.parametrize(
    ("scope", "there"),
    [("read", LOOKS), ("infer", LOOKS | CONVERSATIONS), ("admin", LOOKS | CONVERSATIONS | CONTROL)],
)
async def test_the_scope_of_a_token_decides_which_files_are_there(world: World, scope: str, there: set[str]) -> None:
    async with await world.client(scope) as client:
        assert set(await names(client)) == there
        has_control = scope == "admin"
        assert ("ctl" in await names(client, "nodes/n1")) == has_control
        assert ("ctl" in await names(client, "models/m")) == has_control
        assert ("ctl" in await names(client, "models")) == has_control
        if not has_control:
            for path in ("ctl", "nodes/n1/ctl", "models/ctl", "models/m/ctl"):
                with pytest.raises(NotFound):
                    await client.write_file(path, "shutdown")
            with pytest.raises(Refused):
                await client.remove("nodes/n1")
    assert world.cluster.calls == []
    assert world.stops == []


async def test_over_tcp_nobody_is_let_in_without_a_valid_token(world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token, secret = world.tokens.create("admin")
    world.tokens.revoke(token)
    for aname in ("", "nodes/n1", "llb_wrong", f"{secret}/nodes"):
        with pytest.raises(Refused):
            await AsyncClient.connect(world.tcp, aname=aname, uname="root")
    assert secret not in caplog.text


async def test_a_token_limits_the_owner_of_the_socket_too(world: World) -> None:
    _, secret = world.tokens.create("read")
    async with await AsyncClient.connect(world.unix, aname=secret) as client:
        assert set(await names(client)) == LOOKS


async def test_another_user_of_the_socket_needs_a_token(world: World) -> None:
    with pytest.raises(Refused):
        await world.namespace.attach("root", "", Peer("unix", uid=12345, gid=0, pid=1))
    with pytest.raises(Refused):
        await world.namespace.attach("root", "", Peer("unix"))
    _, secret = world.tokens.create("read")
    assert (await world.namespace.attach("x", secret, Peer("unix", uid=12345))).is_directory


async def test_conversations_of_one_token_are_not_there_for_another(world: World) -> None:
    _, secret = world.tokens.create("infer")
    async with await world.client(secret=secret) as mine, mine.open("clone", "rw") as clone:
        number = (await clone.read()).decode().strip()
        async with await world.client("infer") as other, await world.client(secret=secret) as again:
            assert await names(other, "sessions") == []
            with pytest.raises(NotFound):
                await other.read_file(f"sessions/{number}/history")
            assert await names(again, "sessions") == [number]
        async with await world.client("admin") as admin, await world.client() as owner:
            assert await names(admin, "sessions") == [number]
            assert await names(owner, "sessions") == [number]


async def test_an_aname_is_where_the_root_lies_and_nothing_above_it_is_there(world: World) -> None:
    async with await world.client(path="nodes/n1") as client:
        assert set(await names(client)) == {"ctl", "status", "load", "model", "metrics", "log"}
        assert await client.read_file("../../status") == await client.read_file("status")
        with pytest.raises(NotFound):
            await client.read_file("../nodes/n1/status")
    async with await world.client() as owner, owner.open("clone", "rw") as ctl:
        await ctl.write("max_tokens 3")
        async with await world.client(path="sessions/0") as client:
            assert await client.read_file("ctl") == b"max_tokens 3\n"
            files = {"ctl", "prompt", "stream", "reply", "tally", "history", "status", "error"}
            assert set(await names(client)) == files
    async with await world.client("read", "nodes/n1") as client:
        assert "ctl" not in await names(client)
    async with await world.client("read", "models") as client:
        assert "m" in await names(client)


@pytest.mark.parametrize("path", ["nodes/n9", "sessions/0", "nothing", "nodes/n1/nothing"])
async def test_an_aname_that_is_not_there_is_refused(world: World, path: str) -> None:
    with pytest.raises(NotFound):
        await world.client(path=path)
    with pytest.raises(FileError, match="not a directory"):
        await world.client(path="status/x")


async def test_refusals_are_kept_apart(world: World) -> None:
    async with await world.client() as owner, await world.client("admin") as admin:
        with pytest.raises(NotFound):
            await admin.write_file("ctl", "kill n9")
        assert await owner.read_file("error") == b""
        assert await admin.read_file("error") == b"file does not exist: no node is called 'n9'\n"


def _anames() -> Iterator[tuple[str, tuple[str, str]]]:
    yield "", ("", "")
    yield "/nodes/n1", ("", "/nodes/n1")
    yield "llb_x", ("llb_x", "")
    yield "/llb_x/nodes/n1", ("llb_x", "nodes/n1")


@pytest.mark.parametrize(("aname", "parts"), list(_anames()))
def test_an_aname_is_a_token_and_a_path(aname: str, parts: tuple[str, str]) -> None:
    assert split_aname(aname) == parts
