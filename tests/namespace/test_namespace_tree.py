"""The tree itself: what is there, what its texts say, and the rules that hold for every file."""

from __future__ import annotations

import asyncio
import json
from dataclasses import fields

import pytest

from llambo.cluster.control import ClusterEvent, NodeInfo
from llambo.core.errors import BadRequest, NotFound, Refused
from llambo.ninep import messages as m
from llambo.ninep.client import AsyncClient
from llambo.ninep.errors import FileError
from tests.namespace.namespace_world import MODEL, NODE, WAIT_S, World, names, until

READ_ONLY = [
    "status", "status.json", "nodes.json", "metrics", "events", "config", "checkpoint", "error", "nodes/n1/status",
    "nodes/n1/load", "nodes/n1/model", "nodes/n1/log", "nodes/n1/metrics", "models/m/status", "sessions/0/stream",
    "sessions/0/reply", "sessions/0/tally", "sessions/0/history", "sessions/0/status", "sessions/0/error",
    "fusion/last-result", "fusion/tally",
]  # fmt: skip
WRITABLE = [
    "ctl", "data", "clone", "nodes/n1/ctl", "models/ctl", "models/m/ctl", "sessions/0/ctl", "sessions/0/prompt",
    "fusion/ctl", "fusion/data",
]  # fmt: skip


async def test_the_whole_tree_is_there(client: AsyncClient) -> None:
    async with client.open("clone", "rw"):
        there = []
        for directory in ("", "nodes/n1", "models", "models/m", "sessions/0", "fusion"):
            there += [f"{directory}/{entry.name}".lstrip("/") for entry in await client.ls(directory)]
        directories = {"nodes", "models", "sessions", "models/m", "fusion"}
        assert {path for path in there if not path.startswith("models/built-in")} == {
            *READ_ONLY, *WRITABLE, *directories
        }  # fmt: skip
        assert await names(client, "nodes") == ["n1"]
        assert await names(client, "sessions") == ["0"]


async def test_no_write_reaches_a_file_that_is_only_read(world: World, client: AsyncClient) -> None:
    async with client.open("clone", "rw"):
        for path in READ_ONLY:
            with pytest.raises(Refused) as refusal:
                await client.write_file(path, "x", "a")
            assert refusal.value.message == "permission denied"
            assert (await client.stat(path)).mode == 0o444
        for path in WRITABLE:
            assert (await client.stat(path)).mode & 0o222, path


async def test_every_file_has_length_0_and_a_qid_of_its_own(client: AsyncClient) -> None:
    async with client.open("clone", "rw"):
        stats = [await client.stat(path) for path in (*READ_ONLY, *WRITABLE)]
        assert {stat.length for stat in stats} == {0}
        assert len({stat.qid.path for stat in stats}) == len(stats)
        again = [await client.stat(path) for path in (*READ_ONLY, *WRITABLE)]
        assert [stat.qid for stat in again] == [stat.qid for stat in stats]


async def test_a_time_or_truncation_is_no_change_and_nothing_is_renamed_made_or_removed(client: AsyncClient) -> None:
    from dataclasses import replace

    fid = client.session.new_fid()
    await client.request(lambda tag: m.Twalk(tag, client.root, fid, ("ctl",)))
    await client.request(lambda tag: m.Twstat(tag, fid, replace(m.UNCHANGED, length=0, mtime=1)))
    for refused in (
        lambda tag: m.Twstat(tag, fid, replace(m.UNCHANGED, name="other")),
        lambda tag: m.Tcreate(tag, client.root, "new", 0o644, m.OWRITE),
    ):
        with pytest.raises(Refused):
            await client.request(refused)
    for path in ("ctl", "status", "nodes", "models/m", "nodes/n1/status"):
        with pytest.raises(Refused):
            await client.remove(path)


async def test_rm_of_a_node_drains_it_and_rm_of_a_session_hangs_up(world: World, client: AsyncClient) -> None:
    await client.remove("nodes/n1")
    assert world.cluster.calls == [("drain", "n1")]
    assert await names(client, "nodes") == []
    async with client.open("clone", "rw") as clone:
        await client.remove("sessions/0")
        assert await names(client, "sessions") == []
        with pytest.raises(NotFound):
            await clone.write("keep")


async def test_status_is_lines_and_json_is_the_document_of_the_specification(client: AsyncClient) -> None:
    lines = (await client.read_file("status")).decode().splitlines()
    facts = dict(line.split(" ", 1) for line in lines)
    assert facts["state"] == "ready"
    assert facts["uptime_s"] == "1.5"
    assert facts["problem"] == "n9 is dead: broken"
    assert {"nodes", "slots", "busy", "queued", "requests", "tokens_per_s", "strategy", "launcher", "http"} <= set(
        facts
    )
    document = json.loads(await client.read_file("status.json"))
    assert list(document)[:9] == [
        "state", "version", "launcher", "strategy", "uptime_s", "nodes", "slots", "queued", "requests",
    ]  # fmt: skip
    assert document["nodes"] == {"total": 1, "ready": 1, "busy": 0, "dead": 0}
    assert document["styx"] == ["unix!x"]
    assert document["balancer"]["hit_ratio"] == 0.5
    assert document["checkpoint"] == "/home/x/state.json"
    (node,) = document["node_list"]
    assert set(node) == {field.name for field in fields(NodeInfo)}
    assert (node["id"], node["rss_bytes"]) == ("n1", None)


async def test_memory_is_measured_where_it_is_asked_for(client: AsyncClient) -> None:
    (node,) = json.loads(await client.read_file("nodes.json"))
    assert node["rss_bytes"] == 1000


async def test_texts_of_the_root_and_of_a_node(client: AsyncClient) -> None:
    assert await client.read_file("metrics") == b"llambo_nodes 1\n"
    assert await client.read_file("config") == b"models.slots = 4  # default\n"
    assert json.loads(await client.read_file("checkpoint")) == {"version": 1}
    assert await client.read_file("nodes/n1/load") == b"0.250\n"
    assert await client.read_file("nodes/n1/model") == b"m\n"
    assert b'llambo_node_requests_total{node="n1"} 7\n' in await client.read_file("nodes/n1/metrics")
    status = dict(
        line.partition(" ")[::2] for line in (await client.read_file("nodes/n1/status")).decode().splitlines()
    )
    assert set(status) == {field.name for field in fields(NodeInfo)}
    assert (status["id"], status["requests"], status["sandbox"]) == ("n1", "7", "files")


async def test_a_text_is_of_one_moment_however_it_is_read_and_its_end_stays(world: World, client: AsyncClient) -> None:
    async with client.open("status") as file:
        first = await file.read(10)
        world.cluster.strategy = "x" * 1000
        rest = await file.read_all()
        assert b"strategy random\n" in first + rest
        assert [await file.read(), await file.read()] == [b"", b""]


async def test_a_node_that_goes_is_gone_and_its_open_files_say_so(world: World, client: AsyncClient) -> None:
    before = await client.stat("nodes/n1")
    async with client.open("nodes/n1/ctl", "rw") as ctl:
        await ctl.write("kill")
        assert world.cluster.calls == [("kill", "n1")]
        with pytest.raises(NotFound) as refusal:
            await ctl.write("drain")
        assert refusal.value.message == "no node is called 'n1'"
    for path in ("nodes/n1", "nodes/n1/status"):
        with pytest.raises(NotFound):
            await client.read_file(path)
    world.cluster.by_id["n1"] = NODE.__class__(**{field.name: getattr(NODE, field.name) for field in fields(NODE)})
    assert (await client.stat("nodes/n1")).qid.path != before.qid.path


async def test_events_come_from_the_moment_of_opening_as_lines(world: World, client: AsyncClient) -> None:
    await until(lambda: world.cluster.happened)
    world.cluster.publish(ClusterEvent(1.0, "before"))
    await until(world.cluster.happened[0].empty)
    async with client.open("events") as first, client.open("events") as second:
        reading = [asyncio.create_task(first.read()), asyncio.create_task(second.read())]
        await client.read_file("status")  # neither holds up another request
        world.cluster.publish(ClusterEvent(1763840000.25, "node_ready", {"node": "n1", "why": "it's new", "n": None}))
        async with asyncio.timeout(WAIT_S):
            assert await asyncio.gather(*reading) == [b"1763840000.250 node_ready node=n1 why='it''s new' n=''\n"] * 2


async def test_a_reader_of_events_that_is_too_slow_is_told_how_many_it_lost(world: World, client: AsyncClient) -> None:
    async with client.open("events") as file:
        await until(lambda: world.cluster.happened)
        for number in range(2000):
            world.cluster.publish(ClusterEvent(float(number), "tick"))
        await until(world.cluster.happened[0].empty)
        data = b""
        while data.count(b"\n") < 1025:
            data += await file.read()
        assert data.startswith(b"lost 976\n976.000 tick\n")
        world.cluster.publish(ClusterEvent(1.0, "lost", {"events": 3}))
        assert await file.read() == b"lost 3\n"


async def test_a_log_is_followed_until_its_node_ends(world: World, client: AsyncClient, tmp_path: object) -> None:
    from dataclasses import replace
    from pathlib import Path

    log = Path(str(tmp_path)) / "n1.log"
    log.write_text("started\n")
    world.cluster.by_id["n1"] = replace(NODE, log=str(log))
    async with client.open("nodes/n1/log") as file:
        assert await file.read() == b"started\n"
        with log.open("a") as writer:
            writer.write("more\n")
        assert await file.read() == b"more\n"
        with log.open("a") as writer:
            writer.write("last\n")
        del world.cluster.by_id["n1"]
        assert await file.read_all() == b"last\n"


async def test_a_node_without_a_log_says_so(client: AsyncClient) -> None:
    with pytest.raises(NotFound) as refusal:
        await client.read_file("nodes/n1/log")
    assert "has no log here" in refusal.value.message


async def test_a_model_is_loaded_unloaded_and_pinned_by_its_ctl(world: World, client: AsyncClient) -> None:
    cluster = world.cluster
    assert b"state ready\n" in await client.read_file("models/m/status")
    for line in ("pin", "unpin", "load"):
        await client.write_file("models/m/ctl", line)
    assert cluster.calls == [("pin", "m", True), ("pin", "m", False)]
    from dataclasses import replace

    cluster.models["m"] = replace(MODEL, state="unloaded")
    await client.write_file("models/m/ctl", "load")
    assert cluster.calls[-1] == ("spawn", 1, "", "m", 0)
    await client.write_file("models/m/ctl", "unload")
    assert cluster.calls[-1] == ("free", "m")
    with pytest.raises(NotFound):
        await client.stat("models/m")


async def test_load_of_a_model_that_is_coming_waits_for_it(world: World, client: AsyncClient) -> None:
    from dataclasses import replace

    cluster = world.cluster
    cluster.models["m"] = replace(MODEL, state="loading")
    async with client.open("models/m/ctl", "a") as ctl:
        loading = asyncio.create_task(ctl.write("load"))
        await until(lambda: len(cluster.happened) == 2)
        cluster.publish(ClusterEvent(1.0, "other"))
        await until(lambda: all(queue.empty() for queue in cluster.happened))
        assert not loading.done()
        cluster.models["m"] = MODEL
        cluster.publish(ClusterEvent(1.0, "node_ready"))
        async with asyncio.timeout(WAIT_S):
            assert await loading == 4
    assert cluster.calls == []


async def test_models_of_this_machine_are_there_and_can_be_loaded(world: World, client: AsyncClient) -> None:
    assert "built-in" in await names(client, "models")
    assert b"state stored\nref built-in\n" in await client.read_file("models/built-in/status")
    await client.write_file("models/built-in/ctl", "load")
    assert world.cluster.calls == [("load", "built-in", "built-in")]


async def test_a_pull_returns_once_the_model_is_here_and_tells_where(client: AsyncClient) -> None:
    async with client.open("models/ctl", "rw") as ctl:
        assert await ctl.read_all() == b"pull REF\n"
        await ctl.write("pull built-in")
        assert (await ctl.read_all()).endswith(b"built-in.gguf\n")
    assert b"pull fetched\n" in await client.read_file("models/built-in/status")


async def test_a_pull_that_cannot_be_is_refused(client: AsyncClient) -> None:
    from llambo.core.errors import DownloadFailed

    with pytest.raises(DownloadFailed, match="offline mode"):
        await client.write_file("models/ctl", "pull https://h.example/x.gguf")
    assert b"state failed: " in await client.read_file("models/x/status")
    with pytest.raises(BadRequest):
        await client.write_file("models/ctl", "pull")


async def test_what_is_not_there_cannot_be_walked_to(client: AsyncClient) -> None:
    for path in ("nothing", "nodes/n9", "sessions/0", "models/none", "nodes/n1/nothing"):
        with pytest.raises(NotFound):
            await client.stat(path)
    with pytest.raises(FileError, match="not a directory"):
        await client.stat("status/x")
