"""The control socket with a `Control` in memory behind it: answers, progress, hang-ups, nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from llambo.cluster.control import ClusterEvent
from llambo.control import protocol as p
from llambo.control.client import ControlClient
from llambo.control.server import ControlServer
from llambo.core.errors import BadRequest, LlamboError, NotFound, TimedOut, Unreachable
from tests.control.control_fakes import FakeControl


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


@pytest.fixture
def stops() -> list[bool]:
    return []


@pytest.fixture
async def path(control: FakeControl, stops: list[bool], tmp_path: Path) -> AsyncIterator[Path]:
    """Where the control socket is."""
    where = tmp_path / "c.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen()
        listener.setblocking(False)
        server = ControlServer(control, listener, request_stop=lambda: stops.append(True))
        await server.start()
        yield where
        await server.close()


async def ask(path: Path, *calls: p.Call, progress: Callable[[Any], None] | None = None) -> Any:
    """The last call's result, over one connection of the blocking client."""

    def talk() -> Any:
        with ControlClient(path) as client:
            return [client.call(call, progress=progress) for call in calls][-1]

    return await asyncio.to_thread(talk)


async def test_nodes_are_started_with_progress_and_listed(path: Path, control: FakeControl) -> None:
    seen: list[Any] = []
    started = await ask(path, p.Spawn(3, "medium", "m", 2), progress=seen.append)
    assert [node["id"] for node in started] == ["n1", "n2", "n3"]
    assert seen == [{"ready": ready, "wanted": 3} for ready in (1, 2, 3)]
    assert control.calls == [("spawn", 3, "medium", "m", 2)]
    listed = await ask(path, p.Nodes())
    assert [(node["id"], node["type"], node["sandbox"]) for node in listed] == [
        (f"n{i}", "medium", ["files"]) for i in (1, 2, 3)
    ]


async def test_every_call_reaches_the_control(path: Path, control: FakeControl, stops: list[bool]) -> None:
    await ask(path, p.Spawn(4), p.Drain("n1"), p.Kill("n2"), p.Detach("n3"), p.Pin("m", True))
    assert (await ask(path, p.Restart("n4")))["epoch"] == 2
    assert (await ask(path, p.Attach("http://h", "tiny", "key", "KEY")))["address"] == "http://h"
    assert control.calls[1:] == [
        ("drain", "n1"),
        ("kill", "n2"),
        ("detach", "n3"),
        ("pin", "m", True),
        ("restart", "n4"),
        ("attach", "http://h", "tiny", "key", "KEY"),
    ]
    assert len(await ask(path, p.Scale(2, "m"))) == 2
    assert (await ask(path, p.Status()))["requests"] == {
        "total": 3,
        "failed": 1,
        "cancelled": 0,
        "failovers": 0,
        "retries": 0,
    }
    stats = await ask(path, p.Balancer("least-loaded"))
    assert (stats["strategy"], stats["hit_ratio"], stats["by_node"]) == ("least-loaded", 0.5, {"n1": 3})
    assert await ask(path, p.Metrics()) == "llambo_nodes 1\n"
    assert await ask(path, p.Checkpoint()) == {"version": 1}
    assert await ask(path, p.Save()) == "/usual"
    assert await ask(path, p.Save("/there")) == "/there"
    assert await ask(path, p.Shutdown()) == {"pid": os.getpid()}
    assert stops == [True]


async def test_errors_keep_their_class(path: Path) -> None:
    with pytest.raises(BadRequest, match="count must be at least 1, not 0"):
        await ask(path, p.Spawn(0))
    with pytest.raises(NotFound, match="no node is called 'n9'"):
        await ask(path, p.Kill("n9"))


async def test_a_fault_of_ours_is_told_as_one_and_the_next_call_is_answered(path: Path) -> None:
    def talk() -> Any:
        with ControlClient(path) as client:
            with pytest.raises(LlamboError, match="its log has the details"):
                client.call(p.Restore())
            return client.call(p.Metrics())

    assert await asyncio.to_thread(talk) == "llambo_nodes 1\n"


async def test_a_caller_that_hangs_up_cancels_its_call(path: Path, control: FakeControl) -> None:
    control.hold.clear()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(p.encode_request(1, p.Spawn(2)) + p.encode_request(2, p.Metrics()))
    assert json.loads(await reader.readline())["id"] == 2  # the second is not kept waiting by the first
    assert not control.cancelled.is_set()
    writer.close()
    async with asyncio.timeout(10):
        await control.cancelled.wait()


async def test_events_come_as_they_happen_until_the_caller_hangs_up(path: Path, control: FakeControl) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(p.encode_request(1, p.Events()))
    for number in (1, 2):
        control.happened.put_nowait(ClusterEvent(float(number), "node_ready", {"node": f"n{number}"}))
        event = {"time": number, "kind": "node_ready", "fields": {"node": f"n{number}"}}
        assert json.loads(await reader.readline()) == {"id": 1, "progress": event}
    writer.close()
    async with asyncio.timeout(10):
        await control.cancelled.wait()


@pytest.mark.parametrize("nonsense", [b"\n", b"\xff\n", b"GET / HTTP/1.1\r\n", b'{"id": 1, "call": "no"}\n'])
async def test_nonsense_gets_an_error_and_the_connection_lives_on(path: Path, nonsense: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(nonsense)
    assert json.loads(await reader.readline())["error"]["code"] == "bad_request"
    writer.write(p.encode_request(7, p.Metrics()))
    assert json.loads(await reader.readline()) == {"id": 7, "ok": "llambo_nodes 1\n"}
    writer.close()


async def test_a_line_without_end_is_refused_and_others_go_on(path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(b"x" * (p.MAX_LINE_BYTES + 1))
    assert "at most 1048576 bytes" in json.loads(await reader.readline())["error"]["message"]
    assert await reader.read() == b""
    writer.close()
    assert await ask(path, p.Metrics()) == "llambo_nodes 1\n"


async def test_a_server_that_closes_ends_what_is_under_way(tmp_path: Path, control: FakeControl) -> None:
    control.hold.clear()
    where = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen()
        server = ControlServer(control, listener, request_stop=lambda: None)
        await server.start()
        waiting = asyncio.create_task(ask(where, p.Spawn(1)))
        while not control.calls:
            await asyncio.sleep(0)
        await server.close()
    with pytest.raises(Unreachable, match="ended before it answered"):
        await waiting


async def test_a_caller_that_reads_nothing_does_not_keep_the_server_from_closing(
    request: pytest.FixtureRequest, path: Path, control: FakeControl, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()

    def much() -> str:
        asked.set()
        return "x" * 8_000_000

    monkeypatch.setattr(control, "metrics", much)
    deaf = socket.socket(socket.AF_UNIX)
    deaf.connect(str(path))
    deaf.sendall(p.encode_request(1, p.Metrics()))
    deaf.shutdown(socket.SHUT_WR)
    await asked.wait()
    monkeypatch.undo()
    assert await ask(path, p.Metrics()) == "llambo_nodes 1\n"
    request.addfinalizer(deaf.close)  # which is after the server has closed


async def test_a_daemon_that_does_not_answer_is_timed_out(path: Path, control: FakeControl) -> None:
    control.hold.clear()

    def talk() -> None:
        with ControlClient(path) as client:
            client.call(p.Spawn(1), timeout_s=0.05)

    with pytest.raises(TimedOut, match=r"gave no answer within 0\.05 s"):
        await asyncio.to_thread(talk)


def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no cluster listens on"):
        ControlClient(tmp_path / "none.sock")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale.sock"))
    with pytest.raises(Unreachable, match="no cluster listens on"):
        ControlClient(tmp_path / "stale.sock")
