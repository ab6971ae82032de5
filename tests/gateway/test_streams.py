"""Streams that outlive their client: what is kept, for how long and for whom, and how they are gone on with."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateways import MadeUp, Reply, Served, serving

from llambo.cluster.api import Cluster
from llambo.cluster.relay import RelayRequest
from llambo.cluster.transcript import Transcript
from llambo.core import errors, paths
from llambo.core.tokens import TokenStore
from llambo.gateway.errors import Conflict, Missing
from llambo.gateway.streams import Stream, Streams

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hello"}], "stream": True}
EVENTS = tuple(f'data: {{"n":{number}}}\n\n'.encode() for number in range(5))
DONE = b"data: [DONE]\n\n"


# --- what is kept -----------------------------------------------------------------------------------------------------


def stream(name: str, *, owner: str = "", size: int = 0, is_whole: bool = False) -> Stream:
    transcript = Transcript()
    transcript.take(EVENTS[0])
    if is_whole:
        transcript.end()
    return Stream(name, owner, RelayRequest(CHAT, {}), "openai", size, transcript)


def lose(streams: Streams, lost: Stream) -> None:
    streams.run(lost, lambda error: None)
    streams.stopped(lost, keep=True)


async def test_a_lost_stream_is_found_by_who_began_it_alone() -> None:
    streams = Streams(60, 2**20)
    lose(streams, stream("a", owner="t1"))
    assert streams.take("a", "t1").id == "a"
    for name, owner in (("a", "t2"), ("a", ""), ("b", "t1"), ("../a", "t1")):
        with pytest.raises(Missing):
            streams.take(name, owner)
        with pytest.raises(Missing):
            streams.forget(name, owner)
    assert streams.kept == 1
    streams.clear()


async def test_a_stream_that_is_being_delivered_cannot_be_taken() -> None:
    streams = Streams(60, 2**20)
    running = stream("a")
    streams.run(running, lambda error: None)
    with pytest.raises(Conflict):
        streams.take("a", "")
    streams.stopped(running, keep=True)
    assert streams.take("a", "") is running
    streams.clear()


async def test_the_oldest_goes_first_where_memory_ends() -> None:
    streams = Streams(60, 13_000)
    for name in "abcd":
        lose(streams, stream(name, size=3000))
    assert streams.kept_bytes <= 13_000
    assert [name for name in "abcd" if is_kept(streams, name)] == ["c", "d"]
    streams.clear()


async def test_a_body_too_large_to_keep_drops_nobody_else() -> None:
    streams = Streams(60, 8000)
    lose(streams, stream("a", size=100))
    lose(streams, stream("huge", size=10_000))
    assert is_kept(streams, "a")
    assert not is_kept(streams, "huge")
    streams.clear()


async def test_streams_that_ended_well_take_little_and_never_from_those_that_are_lost() -> None:
    streams = Streams(60, 2**20)
    lose(streams, stream("lost", size=3000))
    for number in range(50):
        lose(streams, stream(f"ended{number}", size=100, is_whole=True))
    assert is_kept(streams, "lost")
    assert is_kept(streams, "ended49")
    assert not is_kept(streams, "ended0")
    assert streams.kept_bytes <= 15_000
    streams.clear()


async def test_the_window_ends_for_each_by_itself() -> None:
    streams = Streams(2, 2**20)
    lose(streams, stream("a"))
    await asyncio.sleep(1)  # half of the window of the first one
    lose(streams, stream("b"))
    async with asyncio.timeout(10):
        while is_kept(streams, "a"):
            await asyncio.sleep(0.002)
        assert is_kept(streams, "b")
        while is_kept(streams, "b"):
            await asyncio.sleep(0.002)
    assert (streams.kept, streams.kept_bytes, streams.running) == (0, 0, 0)


async def test_with_no_window_and_after_no_event_nothing_is_kept() -> None:
    streams = Streams(0, 2**20)
    lose(streams, stream("a"))
    assert streams.kept == 0
    streams = Streams(60, 2**20)
    silent = Stream("a", "", RelayRequest(CHAT, {}), "openai", 0)
    lose(streams, silent)
    assert streams.kept == 0


async def test_forgetting_a_running_stream_cancels_it_and_keeps_nothing() -> None:
    streams = Streams(60, 2**20)
    running = stream("a")
    ends: list[Exception] = []
    streams.run(running, ends.append)
    streams.forget("a", "")
    assert [type(error) for error in ends] == [errors.Cancelled]
    streams.stopped(running, keep=True)
    assert (streams.kept, streams.running) == (0, 0)


def is_kept(streams: Streams, name: str) -> bool:
    try:
        streams.take(name, "")
    except Missing:
        return False
    return True


# --- over HTTP --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


async def begin_and_lose(served: Served, relays: MadeUp, events: bytes, **headers: str) -> str:
    """Begins a stream, hangs up after `events`, and returns its id once the gateway has noticed."""
    relays.closed.clear()
    async with served.client.stream("POST", CHAT, json=BODY, headers=headers) as got:
        seen = b""
        async for piece in got.aiter_raw():
            seen += piece
            if seen == events:
                break
        name = got.headers["x-request-id"]
    await relays.closed.wait()
    while served.gateway.streams.running:
        await asyncio.sleep(0)
    return str(name)


def never() -> Any:
    return asyncio.Event().wait


@pytest.mark.parametrize("start", [0, 1, 2])
async def test_a_lost_stream_goes_on_from_the_event_that_is_wanted(cluster: Cluster, start: int) -> None:
    relays = MadeUp([Reply((EVENTS[0] + EVENTS[1], never())), Reply((*EVENTS[2:], DONE))])
    async with serving(cluster, relays) as served:
        name = await begin_and_lose(served, relays, EVENTS[0] + EVENTS[1])
        got = await served.client.get(f"/v1/streams/{name}", params={"from": start})
        again = await served.client.get(f"/v1/streams/{name}", params={"from": 5})
    assert got.status_code == 200
    assert got.headers["content-type"] == "text/event-stream"
    assert got.content == b"".join(EVENTS[start:]) + DONE
    assert again.content == DONE, "it is whole now, and no node is asked again"
    first, second = relays.requests
    assert second.fields == first.fields
    assert first.resume is None
    assert second.resume is not None
    assert second.resume.count == 6


async def test_a_stream_may_be_lost_and_resumed_many_times(cluster: Cluster) -> None:
    relays = MadeUp([Reply((event, never())) for event in EVENTS] + [Reply((DONE,))])
    async with serving(cluster, relays) as served:
        name = await begin_and_lose(served, relays, EVENTS[0])
        for number in range(1, 5):
            relays.closed.clear()
            async with served.client.stream("GET", f"/v1/streams/{name}?from={number}") as got:
                assert await anext(got.aiter_raw()) == EVENTS[number]
            await relays.closed.wait()
            while served.gateway.streams.running:
                await asyncio.sleep(0)
        assert (await served.client.get(f"/v1/streams/{name}?from=0")).content == b"".join(EVENTS) + DONE


async def test_a_finished_stream_gives_its_last_events_again(cluster: Cluster) -> None:
    relays = MadeUp([Reply((*EVENTS, DONE))])
    async with serving(cluster, relays) as served:
        whole = await served.client.post(CHAT, json=BODY)
        name = whole.headers["x-request-id"]
        rest = await served.client.get(f"/v1/streams/{name}?from=4")
        nothing = await served.client.get(f"/v1/streams/{name}?from=6")
    assert rest.content == EVENTS[4] + DONE
    assert (nothing.status_code, nothing.content) == (200, b"")
    assert len(relays.requests) == 1


@pytest.mark.parametrize("start", ["-1", "7", "x", "", "1.5", "0x1", "9" * 5000, "\u0663"])
async def test_a_number_that_is_none_or_beyond_is_refused(cluster: Cluster, start: str) -> None:
    relays = MadeUp([Reply((*EVENTS, DONE))])
    async with serving(cluster, relays) as served:
        name = (await served.client.post(CHAT, json=BODY)).headers["x-request-id"]
        got = await served.client.get(f"/v1/streams/{name}", params={"from": start})
    assert got.status_code == 400
    assert got.json()["error"]["param"] == "from"
    assert "between 0 and 6" in got.json()["error"]["message"]


async def test_a_stream_with_a_client_cannot_be_resumed_but_cancelled(cluster: Cluster) -> None:
    relays = MadeUp([Reply((EVENTS[0], never()))])
    async with serving(cluster, relays) as served:
        async with served.client.stream("POST", CHAT, json=BODY) as got:
            pieces = got.aiter_raw()
            assert await anext(pieces) == EVENTS[0]
            name = got.headers["x-request-id"]
            busy = await served.client.get(f"/v1/streams/{name}?from=0")
            assert (busy.status_code, busy.json()["error"]["code"]) == (409, "conflict")
            ended = await served.client.delete(f"/v1/streams/{name}")
            assert ended.json() == {"id": name, "object": "stream", "deleted": True}
            rest = b"".join([piece async for piece in pieces])
        assert json.loads(rest.removeprefix(b"data: "))["error"]["code"] == "cancelled"
        assert relays.closed.is_set()
        assert (await served.client.get(f"/v1/streams/{name}?from=0")).status_code == 404
        assert (await served.client.delete(f"/v1/streams/{name}")).status_code == 404


async def test_a_stop_that_cuts_a_stream_off_says_so_in_it(cluster: Cluster) -> None:
    relays = MadeUp([Reply((EVENTS[0], never()))])
    async with serving(cluster, relays) as served, served.client.stream("POST", CHAT, json=BODY) as got:
        pieces = got.aiter_raw()
        assert await anext(pieces) == EVENTS[0]
        stopping = asyncio.create_task(served.server.stop(0))
        rest = b"".join([piece async for piece in pieces])
        await stopping
    error = json.loads(rest.removeprefix(b"data: "))["error"]
    assert error["code"] == "stopping"
    assert "stopped" in error["message"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_reply_that_has_not_begun_when_the_drain_ends_is_a_503(cluster: Cluster, stream: bool) -> None:
    relays = MadeUp([], before=never())
    async with serving(cluster, relays) as served:
        asking = asyncio.create_task(served.client.post(CHAT, json=BODY | {"stream": stream}))
        await relays.entered.wait()
        await served.server.stop(0)
        got = await asking
    assert (got.status_code, got.json()["error"]["code"]) == (503, "stopping")


async def test_a_lost_stream_can_be_forgotten(cluster: Cluster) -> None:
    relays = MadeUp([Reply((EVENTS[0], never()))])
    async with serving(cluster, relays) as served:
        name = await begin_and_lose(served, relays, EVENTS[0])
        assert (await served.client.delete(f"/v1/streams/{name}")).status_code == 200
        assert (await served.client.get(f"/v1/streams/{name}?from=0")).status_code == 404


async def test_only_who_began_a_stream_may_resume_or_end_it(cluster: Cluster) -> None:
    paths.home().mkdir(parents=True, exist_ok=True)
    store = TokenStore(paths.home() / "tokens.json")
    mine, other = ({"Authorization": f"Bearer {store.create('infer')[1]}"} for _ in range(2))
    relays = MadeUp([Reply((EVENTS[0], never())), Reply((DONE,))])
    async with serving(cluster, relays, require_token=True) as served:
        name = await begin_and_lose(served, relays, EVENTS[0], **mine)
        assert (await served.client.get(f"/v1/streams/{name}")).status_code == 401
        assert (await served.client.get(f"/v1/streams/{name}", headers=other)).status_code == 404
        assert (await served.client.delete(f"/v1/streams/{name}", headers=other)).status_code == 404
        assert (await served.client.get(f"/v1/streams/{name}", headers=mine)).content == EVENTS[0] + DONE


async def test_when_no_node_can_go_on_the_stream_ends_with_the_error_and_may_be_tried_again(cluster: Cluster) -> None:
    relays = MadeUp([Reply((EVENTS[0], never())), errors.Overloaded("the queue is full"), Reply((DONE,))])
    async with serving(cluster, relays) as served:
        name = await begin_and_lose(served, relays, EVENTS[0])
        failed = await served.client.get(f"/v1/streams/{name}?from=0")
        assert failed.content.startswith(EVENTS[0])
        assert json.loads(failed.content.removeprefix(EVENTS[0] + b"data: "))["error"]["code"] == "overloaded"
        assert (await served.client.get(f"/v1/streams/{name}?from=1")).content == DONE


async def test_a_replay_that_parts_ends_the_stream_for_good(cluster: Cluster) -> None:
    relays = MadeUp([Reply((EVENTS[0], never())), errors.Diverged("it parted")])
    async with serving(cluster, relays) as served:
        name = await begin_and_lose(served, relays, EVENTS[0])
        failed = await served.client.get(f"/v1/streams/{name}?from=1")
        assert json.loads(failed.content.removeprefix(b"data: "))["error"]["code"] == "diverged"
        assert (await served.client.get(f"/v1/streams/{name}?from=1")).status_code == 404


async def test_while_it_waits_for_a_node_a_resumed_stream_is_pinged(cluster: Cluster) -> None:
    is_pinged = asyncio.Event()

    async def slow() -> None:
        if len(relays.requests) > 1:
            await is_pinged.wait()

    relays = MadeUp([Reply((EVENTS[0], never())), Reply((DONE,))], before=slow)
    async with serving(cluster, relays, ping_interval="50ms") as served:
        name = await begin_and_lose(served, relays, EVENTS[0])
        got = b""
        async with served.client.stream("GET", f"/v1/streams/{name}?from=0") as reply:
            async for piece in reply.aiter_raw():
                got += piece
                if got.count(b": ping\n\n") == 2:
                    is_pinged.set()
    assert got.startswith(EVENTS[0] + b": ping\n\n")
    assert got.replace(b": ping\n\n", b"") == EVENTS[0] + DONE


async def test_the_dialect_of_a_stream_stays_its_own(cluster: Cluster) -> None:
    relays = MadeUp([Reply((EVENTS[0], never())), errors.NodeLost("gone")])
    async with serving(cluster, relays) as served:
        relays.closed.clear()
        async with served.client.stream("POST", "/v1/messages", json=BODY) as got:
            assert await anext(got.aiter_raw()) == EVENTS[0]
        await relays.closed.wait()
        while served.gateway.streams.running:
            await asyncio.sleep(0)
        again = await served.client.get(f"/v1/streams/{got.headers['x-request-id']}?from=1")
    assert again.text.startswith("event: error\n")
