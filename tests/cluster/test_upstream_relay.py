"""A relayed reply from a node that answers in every way there is: scripted bytes on a real socket."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from llambo.cluster.launch.base import TOKEN_IDS, NodeHandle
from llambo.cluster.relay_counts import Counts, counts_of_body, counts_of_events, has_ended, is_last
from llambo.cluster.transcript import parsed
from llambo.cluster.upstream import Upstream, open_upstream
from llambo.cluster.upstream_relay import NodeReply, NotThere, RelayCall
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NodeLost
from tests.cluster.relay_world import pieces

Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
EVENT = b'data: {"choices":[]}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = RelayCall("/v1/chat/completions", {"model": msgspec.Raw(b'"m"')}, streams=True, seed=5)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def plain(status: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers, b"", b""]
    return b"\r\n".join(lines) + body


@asynccontextmanager
async def node(
    path: Path, answer: bytes | Answer, *, only_openai: bool = False, stall_s: float = 5
) -> AsyncIterator[tuple[Upstream, list[bytes]]]:
    """A client, and the requests that its server got."""
    asked: list[bytes] = []
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        asked.append(head + await reader.readexactly(length))
        try:
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                await answer(asked[-1], writer)
        except OSError:
            pass
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_unix_server(serve, path / "node.sock")
    features = frozenset({"generate"} if only_openai else {TOKEN_IDS})
    handle = NodeHandle(
        "n1", 0, f"unix://{path}/node.sock", "m", 1, 512, "their-name", features=features, api_key="key"
    )
    upstream = open_upstream(handle, stall_s=stall_s)
    try:
        yield upstream, asked
    finally:
        await upstream.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        server.close()
        await server.wait_closed()


async def read(upstream: Upstream, call: RelayCall = STREAM) -> list[bytes]:
    async with upstream.relay(call) as reply:
        if not reply.streams:
            return [reply.body]
        return [piece async for piece in pieces(reply)]


async def test_a_request_goes_out_with_seed_progress_and_key(tmp_path: Path) -> None:
    async with node(tmp_path, HEAD + chunk(EVENT) + b"0\r\n\r\n") as (upstream, asked):
        assert await read(upstream) == [EVENT]
    head, body = asked[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert b"Authorization: Bearer key" in head
    assert msgspec.json.decode(body) == {"model": "m", "return_progress": True, "seed": 5}


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        HEAD,
        HEAD + chunk(EVENT),
        HEAD + b"zz\r\n",
        plain(b"200 OK", b"{}")[:-1],
    ],
)
async def test_a_server_that_breaks_off_or_talks_nonsense_is_lost(tmp_path: Path, answer: bytes) -> None:
    async with node(tmp_path, answer) as (upstream, _):
        with pytest.raises(NodeLost, match="node n1"):
            await read(upstream)


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (b"500 no", b'{"error":{"message":"boom","type":"server_error"}}', EngineFailed),
        (b"503 wait", b'{"error":{"message":"Loading model","type":"unavailable_error"}}', EngineFailed),
        (b"429 busy", b"{}", EngineFailed),
        (b"401 who", b"{}", EngineFailed),
        (b"302 there", b"", EngineFailed),
        (b"404 what", b"{}", NotThere),
    ],
)
@pytest.mark.parametrize("only_openai", [True, False])
async def test_a_refusal_that_is_not_the_requests_fault_is_an_error(
    tmp_path: Path, status: bytes, body: bytes, error: type[Exception], only_openai: bool
) -> None:
    async with node(tmp_path, plain(status, body), only_openai=only_openai) as (upstream, _):
        with pytest.raises(error):
            await read(upstream)


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (b"501 no", "not_supported_error", "cannot"),
        (b"500 no", "server_error", "Field 'a': [json.exception.type_error.302] no"),
        (b"500 no", "server_error", "Failed to parse messages: Missing 'role'"),
        (b"500 no", "server_error", "vector::_M_range_check: __n (which is 9)"),
    ],
)
async def test_what_the_engine_blames_itself_for_may_be_the_requests_fault(
    tmp_path: Path, status: bytes, kind: str, message: str
) -> None:
    body = msgspec.json.encode({"error": {"message": message, "type": kind}})
    async with node(tmp_path, plain(status, body)) as (upstream, _):
        with pytest.raises(BadRequest, match=re.escape(message)):
            await read(upstream)


async def test_a_refusal_of_the_request_is_a_reply(tmp_path: Path) -> None:
    for only_openai in (True, False):
        async with (
            node(tmp_path, plain(b"400 no", b'{"error":{}}'), only_openai=only_openai) as (upstream, _),
            upstream.relay(STREAM) as reply,
        ):
            assert (reply.status, reply.body, reply.streams) == (400, b'{"error":{}}', False)
        (tmp_path / "node.sock").unlink(missing_ok=True)


async def test_a_reply_without_a_length_ends_with_its_connection(tmp_path: Path) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + EVENT * 2
    async with node(tmp_path, answer) as (upstream, _):
        assert b"".join(await read(upstream)) == EVENT * 2


async def test_what_is_said_before_the_reply_is_passed_over(tmp_path: Path) -> None:
    async with node(tmp_path, b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + plain(b"200 OK", b"{}")) as (upstream, _):
        assert await read(upstream, RelayCall("/x", {})) == [b"{}"]


@pytest.mark.parametrize(
    ("event", "error", "words"),
    [
        (b'data: {"error":{"code":500,"message":"boom","type":"server_error"}}\n\n', EngineFailed, "boom"),
        (b'error: {"code":500,"message":"boom","type":"server_error"}\n\n', EngineFailed, "boom"),
        (
            b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"boom"}}\n\n',
            EngineFailed,
            "boom",
        ),
        (b'data: {"error":{"message":"bad","type":"invalid_request_error"}}\n\n', BadRequest, "bad"),
        (b'data: {"error":3}\n\n', EngineFailed, "middle"),
    ],
)
async def test_an_error_in_the_stream_comes_after_what_was_before_it(
    tmp_path: Path, event: bytes, error: type[LlamboError], words: str
) -> None:
    answer = HEAD + chunk(EVENT + event + EVENT) + b"0\r\n\r\n"
    async with node(tmp_path, answer) as (upstream, _), upstream.relay(STREAM) as reply:
        assert await anext(pieces(reply)) == EVENT
        with pytest.raises(error, match=words):
            await anext(pieces(reply))


async def test_pings_do_not_keep_a_node_alive_and_steps_of_the_prefill_do(tmp_path: Path) -> None:
    async def pinging(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while not writer.is_closing():
            writer.write(chunk(b": ping\n\n"))
            await writer.drain()
            await asyncio.sleep(0.05)

    async def working(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        for step in range(50):
            writer.write(chunk(b'data: {"choices":[],"prompt_progress":{"processed":%d}}\n\n' % step))
            await asyncio.sleep(0.05)
        writer.write(chunk(EVENT) + b"0\r\n\r\n")

    async with node(tmp_path, pinging, stall_s=0.3) as (upstream, _):
        with pytest.raises(NodeLost, match=r"gave nothing for 0\.3 s"):
            await read(upstream)
    (tmp_path / "node.sock").unlink(missing_ok=True)
    async with node(tmp_path, working, stall_s=2) as (upstream, _):
        assert await read(upstream) == [EVENT]


async def test_an_endpoint_without_reports_is_watched_from_its_first_event_on(tmp_path: Path) -> None:
    async def slow(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        await asyncio.sleep(0.6)
        writer.write(chunk(EVENT))
        await asyncio.sleep(5)

    call = RelayCall("/v1/messages", {}, streams=True)
    async with node(tmp_path, slow, stall_s=0.3) as (upstream, asked), upstream.relay(call) as reply:
        assert await anext(pieces(reply)) == EVENT
        with pytest.raises(NodeLost, match="gave nothing"):
            await anext(pieces(reply))
    assert b"return_progress" not in asked[0]


async def test_leaving_closes_the_connection_at_once(tmp_path: Path) -> None:
    gone = asyncio.Event()
    gone_after_s: list[float] = []

    async def endless(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        try:
            while True:
                writer.write(chunk(EVENT))
                await writer.drain()
                await asyncio.sleep(0.001)
        finally:
            gone.set()

    async with node(tmp_path, endless) as (upstream, _):
        for _ in range(3):
            gone.clear()
            async with upstream.relay(STREAM) as reply:
                await anext(pieces(reply))
            left = time.monotonic()
            async with asyncio.timeout(10):
                await gone.wait()
            gone_after_s.append(time.monotonic() - left)
    assert min(gone_after_s) < 0.2, "the best counts: a busy machine may add to one"


async def test_closing_the_client_ends_a_reply_that_is_being_read_or_waited_for(tmp_path: Path) -> None:
    async def silent(_: bytes, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)

    for answer in (silent, lambda _, writer: _first(writer)):
        async with node(tmp_path, answer) as (upstream, asked):
            task = asyncio.create_task(read(upstream))
            while not asked:
                await asyncio.sleep(0.001)
            await upstream.close()
            with pytest.raises(NodeLost, match="was stopped"):
                await task
            with pytest.raises(NodeLost, match="was stopped"):
                await read(upstream)
        (tmp_path / "node.sock").unlink(missing_ok=True)


async def _first(writer: asyncio.StreamWriter) -> None:
    writer.write(HEAD + chunk(EVENT))
    await asyncio.sleep(5)


async def test_a_server_with_the_openai_api_alone_gets_its_own_model_name_and_no_other_paths(tmp_path: Path) -> None:
    async with node(tmp_path, HEAD + chunk(EVENT) + b"0\r\n\r\n", only_openai=True) as (upstream, asked):
        assert await read(upstream) == [EVENT]
        assert await read(upstream, RelayCall("/v1/responses", {}, streams=True, seed=5)) == [EVENT]
        with pytest.raises(NotThere, match="only the OpenAI API, which has no /tokenize"):
            await read(upstream, RelayCall("/tokenize", {}))
    bodies = [msgspec.json.decode(request.split(b"\r\n\r\n")[1]) for request in asked]
    assert bodies == [{"model": "their-name", "seed": 5}, {"model": "their-name"}]


async def test_no_server_at_all_is_a_lost_node(tmp_path: Path) -> None:
    upstream = open_upstream(NodeHandle("n1", 1, f"unix://{tmp_path}/none.sock", "m", 1, 512))
    with pytest.raises(NodeLost, match="No such file"):
        await read(upstream)
    await upstream.close()


# --- pouring ----------------------------------------------------------------------------------------------------------


def numbered(count: int) -> list[bytes]:
    return [b'data: {"n":%d}\n\n' % number for number in range(count)]


@asynccontextmanager
async def told(path: Path, first: bytes = b"") -> AsyncIterator[tuple[NodeReply, asyncio.StreamWriter]]:
    """A reply whose node says what the test writes, after its headers and `first`."""
    writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    is_over = asyncio.Event()

    async def answer(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + first)
        writers.put_nowait(writer)
        await is_over.wait()

    async with node(path, answer) as (upstream, _):
        try:
            async with upstream.relay(STREAM) as reply:
                yield reply, await writers.get()
        finally:
            is_over.set()


class Reader:
    """Takes events; each is in the queue with the task that it was given in."""

    def __init__(self, *, most: int = 1000) -> None:
        self.given: asyncio.Queue[tuple[bytes, asyncio.Task[object] | None]] = asyncio.Queue()
        self.left = most

    def take(self, piece: bytes) -> bool:
        self.given.put_nowait((piece, asyncio.current_task()))
        self.left -= 1
        return self.left > 0

    async def next(self) -> bytes:
        return (await asyncio.wait_for(self.given.get(), 5))[0]


async def test_what_comes_is_given_without_waking_the_task_that_waits_for_the_end(tmp_path: Path) -> None:
    reader, events = Reader(), numbered(5)
    async with told(tmp_path) as (reply, writer):
        pouring = asyncio.create_task(reply.pour(reader.take))
        for event in events:
            writer.write(chunk(event))
            piece, task = await asyncio.wait_for(reader.given.get(), 5)
            assert (piece, task) == (event, None)
        writer.write(b"0\r\n\r\n")
        assert await pouring is True
    assert reader.given.empty()


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
async def test_however_the_bytes_of_chunks_are_cut_the_events_are_the_same(tmp_path: Path, size: int) -> None:
    chunks = [chunk(event) for event in numbered(40)]
    chunks[3:5] = [b"".join(chunks[3:5])]
    chunks[10] = b"0" + chunks[10]  # a size as no server writes it
    chunks[11] = chunk(b'data: {"n":')
    chunks[12] = chunk(b'"\\r\\n\r\n"}\n\n'.replace(b"\r\n", b""))
    chunks[13] = chunks[13].replace(b"\r\n", b";x=y\r\n", 1)
    wanted = b"".join(data for one in chunks for data in payloads(one)).replace(b"\r", b"")
    reader, got = Reader(), b""
    async with told(tmp_path) as (reply, writer):
        pouring = asyncio.create_task(reply.pour(reader.take))
        for one in chunks:  # each by itself, some in parts, so that they arrive so
            for at in range(0, len(one), size):
                writer.write(one[at : at + size])
                await writer.drain()
        writer.write(b"0\r\n\r\n" + chunk(b"data: after the end\n\n"))
        assert await asyncio.wait_for(pouring, 5) is True
        while not reader.given.empty():
            got += await reader.next()
    assert got == wanted


def payloads(data: bytes) -> list[bytes]:
    """What is in these chunks."""
    found = []
    while data:
        size, _, rest = data.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        found.append(rest[:length])
        data = rest[length + 2 :]
    return found


async def test_who_has_no_room_is_given_nothing_until_it_pours_again_and_loses_nothing(tmp_path: Path) -> None:
    events = numbered(6)
    async with told(tmp_path, chunk(events[0])) as (reply, writer):
        reader = Reader(most=1)
        assert await reply.pour(reader.take) is False
        writer.write(b"".join(map(chunk, events[1:4])))
        await writer.drain()
        assert reader.given.qsize() == 1
        rest = Reader(most=1)
        assert await reply.pour(rest.take) is False
        assert await rest.next() == b"".join(events[1:4])
        last = Reader()
        pouring = asyncio.create_task(reply.pour(last.take))
        writer.write(b"".join(map(chunk, events[4:])) + b"0\r\n\r\n")
        assert await pouring is True
        assert await last.next() == b"".join(events[4:])
    assert reader.given.qsize() == 1


async def test_what_the_reader_raises_ends_the_pouring_and_nothing_is_given_after_it(tmp_path: Path) -> None:
    given: list[bytes] = []

    def refuse(piece: bytes) -> bool:
        given.append(piece)
        raise ZeroDivisionError

    for first in (b"", chunk(EVENT)):  # where it comes in, and where it has been there already
        async with told(tmp_path, first) as (reply, writer):
            pouring = asyncio.create_task(reply.pour(refuse))
            writer.write(chunk(EVENT) + chunk(EVENT))
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(pouring, 5)
            assert len(given) == 1
        given.clear()
        (tmp_path / "node.sock").unlink(missing_ok=True)


async def test_after_a_cancelled_pouring_another_one_goes_on(tmp_path: Path) -> None:
    first, second = Reader(), Reader()
    async with told(tmp_path) as (reply, writer):
        pouring = asyncio.create_task(reply.pour(first.take))
        writer.write(chunk(EVENT))
        assert await first.next() == EVENT
        pouring.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pouring
        writer.write(chunk(EVENT * 2) + b"0\r\n\r\n")
        assert await reply.pour(second.take) is True
        assert await second.next() == EVENT * 2
    assert first.given.empty()


async def test_time_that_the_reader_spends_elsewhere_is_no_stall_of_the_node(tmp_path: Path) -> None:
    async def two(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + chunk(EVENT))
        await is_elsewhere.wait()
        writer.write(chunk(EVENT))
        await asyncio.Event().wait()

    is_elsewhere, reader = asyncio.Event(), Reader(most=1)
    async with node(tmp_path, two, stall_s=1) as (upstream, _), upstream.relay(STREAM) as reply:
        assert await reply.pour(reader.take) is False
        await asyncio.sleep(1.5)  # elsewhere: that is what is tested
        is_elsewhere.set()
        assert await reply.pour(reader.take) is False
        with pytest.raises(NodeLost, match=r"gave nothing for 1 s"):
            await reply.pour(reader.take)


# --- what a reply says of itself --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "ends", "last"),
    [
        (b"data: [DONE]\n\n", True, True),
        (b'event: message_stop\ndata: {"type":"message_stop"}\n\n', True, True),
        (b'event: response.completed\ndata: {"type":"response.completed"}\n\n', True, True),
        (b'data: {"content":"","stop":true,"index":0}\n\n', True, True),
        (b'data: {"choices":[{"finish_reason":"stop"}]}\n\n', True, False),
        (b'data: {"choices":[{"finish_reason":null}]}\n\n', False, False),
        (b'data: {"content":"x","stop":false}\n\n', False, False),
        (b"data: \xff\n\n", False, False),
    ],
)
def test_the_end_of_a_stream_is_known_in_every_dialect(event: bytes, ends: bool, last: bool) -> None:
    assert (has_ended([parsed(event)]), is_last(parsed(event))) == (ends, last)


def test_counts_come_from_timings_or_usage_and_bad_ones_are_none() -> None:
    timings = b'{"timings":{"cache_n":11,"prompt_n":1,"predicted_n":4,"predicted_ms":250.0}}'
    assert counts_of_body(timings) == Counts(4, 12, 11, 0.25)
    usage = b'{"usage":{"completion_tokens":4,"prompt_tokens":12,"prompt_tokens_details":{"cached_tokens":3}}}'
    assert counts_of_body(usage) == Counts(4, 12, 3)
    start = b'data: {"type":"message_start","message":{"usage":{"cache_read_input_tokens":11,"input_tokens":1}}}\n\n'
    end = b'data: {"type":"message_delta","usage":{"output_tokens":4}}\n\n'
    assert counts_of_events(map(parsed, [start, end, b"data: [DONE]\n\n"])) == Counts(4, 12, 11)
    for bad in (
        b"",
        b"[]",
        b"3",
        b'{"usage":3,"timings":[]}',
        b'{"usage":{"completion_tokens":-4,"prompt_tokens":"x"}}',
    ):
        assert counts_of_body(bad) == Counts()
