"""The client of llama.cpp's own server: against a real node, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from llambo.cluster import upstream_http
from llambo.cluster.launch.attach import AttachLauncher
from llambo.cluster.launch.base import EMBEDDING, GENERATE, TEMPLATE, TOKEN_IDS, UNIX, NodeHandle, NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.upstream import Attempt, SlotState, StreamEnd, Upstream, open_upstream
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NodeLost, PromptTooLong
from llambo.core.types import GenerateRequest, LoadOptions, Message, Sampling, TokenEvent
from tests.cluster.llama_server import llama_server

GREEDY = Sampling(max_tokens=6, temperature=0)


@pytest.fixture
async def node(tmp_path: Path, walk_model: Path) -> AsyncIterator[NodeHandle]:
    launcher = LocalLauncher(tmp_path / "run")
    options = LoadOptions(ctx=256, slots=2, threads=1)
    yield await launcher.spawn(NodeRequest("n1", str(walk_model), options), timeout_s=30)
    await launcher.close()


@pytest.fixture
async def upstream(node: NodeHandle) -> AsyncIterator[Upstream]:
    client = open_upstream(node)
    yield client
    await client.close()


async def collect(upstream: Upstream, attempt: Attempt | str) -> list[TokenEvent | StreamEnd]:
    asked = Attempt(attempt, sampling=GREEDY) if isinstance(attempt, str) else attempt
    return [event async for event in upstream.stream(asked)]


def tokens_of(events: list[TokenEvent | StreamEnd]) -> list[TokenEvent]:
    return [event for event in events if isinstance(event, TokenEvent)]


def text_of(events: list[TokenEvent | StreamEnd]) -> str:
    return "".join(event.text for event in tokens_of(events))


async def test_a_stream_is_tokens_with_ids_and_one_end(upstream: Upstream) -> None:
    *tokens, end = await collect(upstream, "hello")
    assert len(tokens) == 6
    assert all(isinstance(t, TokenEvent) and len(t.ids) == 1 and t.text and t.logprob is None for t in tokens)
    assert isinstance(end, StreamEnd)
    assert (end.finish_reason, end.tokens) == ("length", 6)
    assert end.prompt_tokens > 0


async def test_log_probabilities_come_when_asked_for(upstream: Upstream) -> None:
    tokens = tokens_of(await collect(upstream, Attempt("hello", sampling=GREEDY, logprobs=True)))
    assert len(tokens) == 6
    assert all(t.logprob is not None and t.logprob <= 0 for t in tokens)


async def test_a_repeated_prompt_is_taken_from_the_cache_unless_it_must_not_be(upstream: Upstream) -> None:
    await collect(upstream, "the very same prompt")
    end = (await collect(upstream, "the very same prompt"))[-1]
    assert isinstance(end, StreamEnd)
    assert end.cached_tokens == end.prompt_tokens - 1  # the last token is always computed again
    again = Attempt("the very same prompt", sampling=GREEDY, cache_prompt=False)
    end = (await collect(upstream, again))[-1]
    assert isinstance(end, StreamEnd)
    assert end.cached_tokens == 0


async def test_a_prompt_of_ids_is_that_of_its_text(upstream: Upstream) -> None:
    ids = await upstream.tokenize("hello", add_special=True)
    of_ids, of_text = await collect(upstream, Attempt(tuple(ids), sampling=GREEDY)), await collect(upstream, "hello")
    assert tokens_of(of_ids) == tokens_of(of_text)
    assert of_ids[-1] == StreamEnd("length", 6, len(ids), 0)


async def test_the_answer_ends_before_a_stop_text_that_spans_tokens(upstream: Upstream) -> None:
    whole = text_of(await collect(upstream, "hello"))
    stop = whole[len(whole) // 2 - 1 : len(whole) // 2 + 2]
    events = await collect(upstream, Attempt("hello", sampling=GREEDY, stop=(stop,)))
    assert text_of(events) == whole[: whole.index(stop)]
    assert isinstance(events[-1], StreamEnd)
    assert events[-1].finish_reason == "stop"


async def test_text_that_was_held_back_comes_with_the_ids_of_all_its_tokens(upstream: Upstream) -> None:
    plain = tokens_of(await collect(upstream, Attempt("hello", sampling=GREEDY, logprobs=True)))
    stop = plain[1].text + plain[2].text + "~"  # begins like two tokens, and never comes
    held = tokens_of(await collect(upstream, Attempt("hello", sampling=GREEDY, stop=(stop,), logprobs=True)))
    assert len(held) < len(plain)
    assert "".join(t.text for t in held) == "".join(t.text for t in plain)
    assert [i for t in held for i in t.ids] == [i for t in plain for i in t.ids]
    assert sum(t.logprob or 0 for t in held) == pytest.approx(sum(t.logprob or 0 for t in plain), rel=1e-4)


async def test_a_character_that_spans_tokens_comes_without_ids(upstream: Upstream) -> None:
    attempt = Attempt("hello", sampling=Sampling(max_tokens=40, temperature=0), grammar='root ::= "a😀b"')
    events = await collect(upstream, attempt)
    assert [(t.text, len(t.ids)) for t in tokens_of(events)] == [("a", 1), ("😀", 0), ("b", 1)]


async def test_a_json_schema_bounds_the_answer(upstream: Upstream) -> None:
    attempt = Attempt("hello", sampling=Sampling(max_tokens=60, temperature=0), json_schema='{"enum":["né","no"]}')
    assert text_of(await collect(upstream, attempt)).strip() in ('"né"', '"no"')


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (Attempt("x", grammar="root ::= ("), "grammar"),
        (Attempt("x", json_schema="{"), "not JSON"),
        (Attempt("half a character: \udcff"), "JSON cannot carry"),
        (Attempt(()), "prompt"),
    ],
)
async def test_what_cannot_be_asked_is_the_callers_fault(upstream: Upstream, attempt: Attempt, words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        await collect(upstream, attempt)


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(upstream: Upstream) -> None:
    with pytest.raises(PromptTooLong, match=r"has \d{3,} tokens and the context holds 256"):
        await collect(upstream, "hello " * 300)


async def test_the_template_ends_where_the_assistant_speaks(upstream: Upstream) -> None:
    request = GenerateRequest((Message("system", "S"), Message("user", "U")))
    text = await upstream.prompt_text(request)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
    assert await upstream.prompt_text(GenerateRequest(raw_prompt="bare")) == "bare"


async def test_without_a_template_messages_are_joined(node: NodeHandle) -> None:
    bare = NodeHandle("n1", node.pid, node.address, "m", 2, 256, features=frozenset({GENERATE, TOKEN_IDS}))
    request = GenerateRequest((Message("system", "S"), Message("user", "U")))
    assert await open_upstream(bare).prompt_text(request) == "S\n\nU"


async def test_tokenize_parses_specials_and_adds_them_only_when_told(upstream: Upstream) -> None:
    assert await upstream.tokenize("<|im_end|>") == [4]
    assert await upstream.tokenize("<|im_end|>", add_special=True) == [1, 4]


async def test_closing_the_stream_frees_the_slot(upstream: Upstream) -> None:
    for _ in range(8):  # four times as many as there are slots; each would run for thousands of tokens
        events = upstream.stream(Attempt("hello", sampling=Sampling(temperature=0)))
        assert isinstance(await anext(events), TokenEvent)
        await events.aclose()
    async with asyncio.timeout(20):
        assert len(await collect(upstream, "hello")) == 7


async def test_a_closed_client_takes_nothing_new_and_ends_streams_that_nobody_reads_at_present(
    upstream: Upstream,
) -> None:
    async with aclosing(upstream.stream(Attempt("hello", sampling=Sampling(temperature=0)))) as events:
        await anext(events)
        await upstream.close()
        with pytest.raises(NodeLost, match="was stopped"):
            await collect(upstream, "hello")
        with pytest.raises(NodeLost, match="was stopped"):
            async for _ in events:
                pass


async def test_closing_the_client_of_a_node_that_hangs_ends_whatever_waits_for_it_at_once(walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=2048) as server:
        before = len(list(Path("/proc/self/fd").iterdir()))
        async with opened(server.url) as client:
            events = client.stream(Attempt("hello", sampling=Sampling(temperature=0)))
            await anext(events)
            os.kill(server.pid, signal.SIGSTOP)

            async def to_the_end() -> None:
                async for _ in events:
                    pass

            waits = [to_the_end(), collect(client, "hello"), client.tokenize("hello"), client.probe(30)]
            tasks = [asyncio.ensure_future(wait) for wait in waits]
            assert not (await asyncio.wait(tasks, timeout=0.3))[0]  # what was in the pipe is read, and all hang
            began = time.monotonic()
            await client.close()
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - began < 10
        assert [(type(end), str(end)) for end in ends] == [(NodeLost, "node n1 was stopped")] * 4
        async with asyncio.timeout(5):
            while len(list(Path("/proc/self/fd").iterdir())) != before:  # closed transports go in the loop's next turns
                await asyncio.sleep(0)
        os.kill(server.pid, signal.SIGCONT)


async def test_a_client_closed_while_it_dials_ends_the_request() -> None:
    async with opened("http://127.0.0.1:1") as client:
        asking = asyncio.ensure_future(client.tokenize("hello"))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(NodeLost):
            await asking


@pytest.mark.parametrize(("ctx", "slots"), [(100, 1), (100, 3), (256, 2), (300, 2)])
async def test_the_context_of_a_node_of_ours_is_what_its_engine_has(
    tmp_path: Path, walk_model: Path, ctx: int, slots: int
) -> None:
    launcher = LocalLauncher(tmp_path / "run")
    options = LoadOptions(ctx=ctx, slots=slots, threads=1)
    ours = await launcher.spawn(NodeRequest("n1", str(walk_model), options), timeout_s=30)
    told = await AttachLauncher().spawn(NodeRequest("a1", url=f"{UNIX}{ours.socket_path}"), timeout_s=10)
    assert open_upstream(ours).ctx == open_upstream(told).ctx == told.ctx >= ctx
    assert open_upstream(ours).probe_kind == "completion"
    await launcher.close()


async def test_a_well_node_is_healthy_and_its_probe_always_says_the_same(upstream: Upstream) -> None:
    await upstream.health(5)
    first = await upstream.probe(20)
    await collect(upstream, "something else, so that the slots are in another state")
    assert first == await upstream.probe(20)
    assert first


async def test_slots_tell_who_is_busy_with_how_much(upstream: Upstream) -> None:
    assert [slot.id for slot in await upstream.slots()] == [0, 1]
    async with aclosing(upstream.stream(Attempt("hello", sampling=Sampling(temperature=0)))) as events:
        await anext(events)
        busy = [slot for slot in await upstream.slots() if slot.is_busy]
    assert len(busy) == 1
    assert busy[0].tokens > 0


async def test_a_saved_slot_is_restored_on_another_server_which_then_has_the_conversation_cached(
    tmp_path: Path, walk_model: Path
) -> None:
    prompt = "a conversation of some length that is worth keeping"
    async with (
        llama_server(walk_model, slot_dir=tmp_path) as one,
        llama_server(walk_model, slot_dir=tmp_path) as two,
        opened(one.url) as first,
        opened(two.url) as second,
    ):
        await collect(first, prompt)
        used = max(await first.slots(), key=lambda slot: slot.tokens)
        saved = await first.save_slot(used.id, "it.bin")
        assert saved > 0
        assert await second.restore_slot(0, "it.bin") == saved
        end = (await collect(second, prompt))[-1]
        assert isinstance(end, StreamEnd)
        assert end.cached_tokens == end.prompt_tokens - 1
        with pytest.raises(BadRequest):
            await second.restore_slot(0, "absent.bin")
        with pytest.raises(BadRequest):
            await first.save_slot(0, "../it.bin")


async def test_a_server_that_keeps_no_slot_files_says_so(walk_model: Path) -> None:
    async with llama_server(walk_model) as server, opened(server.url) as client:
        with pytest.raises(EngineFailed, match="slot"):
            await client.save_slot(0, "it.bin")
        with pytest.raises(EngineFailed, match="embedding"):
            await client.embed("hello")


async def test_embeddings_are_normalised_and_too_long_a_text_is_refused(walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=64, slots=1, embedding=True) as server, opened(server.url) as client:
        assert sum(x * x for x in await client.embed("hello")) == pytest.approx(1.0, abs=1e-3)
        with pytest.raises(PromptTooLong):
            await client.embed("hello " * 300)


async def test_a_key_opens_a_server_and_a_wrong_one_does_not_and_neither_is_told(walk_model: Path) -> None:
    async with llama_server(walk_model, key="open-sesame") as server:
        async with opened(server.url, key="open-sesame") as client:
            await client.health(5)
            assert len(await collect(client, "hello")) == 7
        async with opened(server.url, key="wrong-word") as client:
            with pytest.raises(EngineFailed, match="API Key") as caught:
                await collect(client, "hello")
            assert "wrong-word" not in str(caught.value) + repr(caught.value) + repr(client)


async def test_a_node_that_hangs_is_lost_for_streams_and_for_health_and_goes_on_when_it_is_woken(
    walk_model: Path,
) -> None:
    async with llama_server(walk_model, ctx=2048) as server, opened(server.url, stall_s=0.5) as client:
        async with aclosing(client.stream(Attempt("hello", sampling=Sampling(temperature=0)))) as events:
            await anext(events)
            os.kill(server.pid, signal.SIGSTOP)
            began = time.monotonic()
            with pytest.raises(NodeLost, match=r"node n1 gave nothing for 0\.5 s"):
                async for _ in events:
                    began = time.monotonic()
            assert 0.4 < time.monotonic() - began < 3
        with pytest.raises(NodeLost, match="no sign of health"):
            await client.health(0.3)
        with pytest.raises(NodeLost, match="gave nothing for"):
            await client.probe(0.3)
        with pytest.raises(NodeLost, match="gave nothing for"):
            await client.tokenize("hello")
        with pytest.raises(NodeLost, match="gave nothing for"):
            await collect(client, "hello")  # not even headers
        os.kill(server.pid, signal.SIGCONT)
        await client.health(5)


async def test_a_server_that_goes_away_in_the_middle_is_lost(walk_model: Path) -> None:
    async with llama_server(walk_model, ctx=2048) as server, opened(server.url) as client:
        async with aclosing(client.stream(Attempt("hello", sampling=Sampling(temperature=0)))) as events:
            await anext(events)
            os.kill(server.pid, signal.SIGKILL)
            with pytest.raises(NodeLost, match="node n1"):
                async for _ in events:
                    pass
        with pytest.raises(NodeLost, match=r"does not answer: Connection re(fused|set)"):
            await collect(client, "hello")
        with pytest.raises(NodeLost, match=r"does not answer: Connection re(fused|set)"):
            await client.health(5)


async def test_a_reader_that_takes_its_time_is_no_stall_of_the_node(walk_model: Path) -> None:
    async with (
        llama_server(walk_model) as server,
        opened(server.url, stall_s=1.5) as client,
        aclosing(client.stream(Attempt("hello", sampling=GREEDY))) as events,
    ):
        await anext(events)
        await asyncio.sleep(2.5)  # the reader is slow: time is what this test is about
        assert len([event async for event in events]) == 6


async def test_a_prefill_that_takes_longer_than_a_stall_is_progress(tmp_path: Path) -> None:
    progress = b'data: {"content":"","tokens":[0],"prompt_progress":{"total":9,"cache":0,"processed":%d}}\n\n'

    async def serve(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for step in range(8):
            writer.write(progress % step)
            await asyncio.sleep(0.2)
        writer.write(PIECE + END)

    async with server_that(tmp_path / "s", serve, stall_s=1) as client:
        assert await collect(client, "hello") == [TokenEvent("a", (1,)), StreamEnd("stop", 1, 2, 0)]


async def test_pings_without_progress_are_a_stall(tmp_path: Path) -> None:
    async def serve(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM)
        for _ in range(100):
            writer.write(b": ping\n\ndata: {}\n\n")
            await writer.drain()
            await asyncio.sleep(0.05)

    async with server_that(tmp_path / "s", serve, stall_s=0.4) as client:
        with pytest.raises(NodeLost, match="gave nothing for"):
            await collect(client, "hello")


@asynccontextmanager
async def opened(url: str, *, key: str = "", stall_s: float = 30) -> AsyncIterator[Upstream]:
    features = frozenset({GENERATE, TOKEN_IDS, TEMPLATE, EMBEDDING})
    client = open_upstream(NodeHandle("n1", 0, url, "m", 2, 256, features=features, api_key=key), stall_s=stall_s)
    try:
        yield client
    finally:
        await client.close()


Serve = Callable[[asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def server_that(path: Path, serve: Serve, *, stall_s: float = 30) -> AsyncIterator[Upstream]:
    """A server on a socket that answers each request as `serve` does, and hangs up."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await serve(writer)
            await writer.drain()
        except ConnectionError:
            pass  # the client has heard enough
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server, opened(f"{UNIX}{path}", stall_s=stall_s) as client:
        yield client


def says(reply: bytes) -> Serve:
    async def serve(writer: asyncio.StreamWriter) -> None:
        writer.write(reply)

    return serve


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
PIECE = b'data: {"content":"a","tokens":[1],"tokens_predicted":1}\n\n'
END = b'data: {"content":"","stop":true,"stop_type":"eos","tokens_predicted":1,"tokens_evaluated":2}\n\n'
BAD_REQUEST = b'{"error":{"message":"bad","type":"invalid_request_error"}}'


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", NodeLost),
        (b"SSH-2.0-OpenSSH\r\n", NodeLost),
        (STREAM, NodeLost),
        (STREAM + PIECE, NodeLost),
        (STREAM + b"data: {nonsense}\n\n", NodeLost),
        (STREAM + b'data: {"content":7}\n\n', NodeLost),
        (STREAM + b"data: [1]\n\n", NodeLost),
        (STREAM + b"data: \xff\xfe\n\n", NodeLost),
        (STREAM + b'data: {"content":"\xff\xfe"}\n\n', NodeLost),
        (STREAM + b'data: {"x":' + b"[" * 100_000 + b"\n\n", NodeLost),
        (b"HTTP/1.1 500 No\r\n\r\n" + b'{"error":{"message":"\xff"}}', EngineFailed),
        (b"HTTP/1.1 500 No\r\n\r\n" + b'{"x":' + b"[" * 100_000, EngineFailed),
        (STREAM + b'data: {"error":{"message":"out of luck","type":"server_error"}}\n\n', EngineFailed),
        (STREAM + PIECE + b'data: {"error":{"message":"out of luck","type":"server_error"}}\n\n', EngineFailed),
        (b"HTTP/1.1 400 No\r\n\r\n" + BAD_REQUEST, BadRequest),
        (b"HTTP/1.1 301 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", EngineFailed),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", EngineFailed),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops", EngineFailed),
        (
            b"HTTP/1.1 503 No\r\n\r\n" + b'{"error":{"message":"Loading model","type":"unavailable_error"}}',
            EngineFailed,
        ),
    ],
)
async def test_a_server_that_misbehaves_gives_one_of_our_errors(
    tmp_path: Path, reply: bytes, error: type[LlamboError]
) -> None:
    async with server_that(tmp_path / "s", says(reply)) as client:
        with pytest.raises(error) as caught:
            await collect(client, "hello")
        assert type(caught.value) is error


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.tokenize("a"),
        lambda client: client.slots(),
        lambda client: client.embed("a"),
        lambda client: client.restore_slot(0, "a"),
        lambda client: client.probe(5),
        lambda client: client.prompt_text(GenerateRequest.from_prompt("a")),
    ],
)
@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", NodeLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops", NodeLost),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\noops", NodeLost),
        (b'HTTP/1.1 200 OK\r\n\r\n{"prompt":"\xff","content":"\xff"}', NodeLost),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000, NodeLost),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops", EngineFailed),
    ],
)
async def test_every_call_tells_a_broken_server_from_a_failing_one(
    tmp_path: Path, call: Callable[[Upstream], Awaitable[object]], reply: bytes, error: type[LlamboError]
) -> None:
    async with server_that(tmp_path / "s", says(reply)) as client:
        with pytest.raises(error):
            await call(client)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"", "says nothing"),
        (b"SSH-2.0-OpenSSH\r\n", "SSH-2.0"),
        (b'HTTP/1.1 503 No\r\n\r\n{"error":{"message":"Loading model","status":"ok"}}', "503"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"status":"loading model"}', "200"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, "too much"),
    ],
)
async def test_whatever_is_not_well_is_lost_to_a_health_check(tmp_path: Path, reply: bytes, words: str) -> None:
    async with server_that(tmp_path / "s", says(reply)) as client:
        with pytest.raises(NodeLost, match=words):
            await client.health(5)


def test_a_health_check_works_on_uvloop_too(tmp_path: Path) -> None:
    async def check() -> None:
        async with server_that(tmp_path / "s", says(b'HTTP/1.1 200 OK\r\n\r\n{"status":"ok"}')) as client:
            await client.health(5)
        with pytest.raises(NodeLost, match="does not answer"):
            async with opened(f"{UNIX}{tmp_path}/absent") as client:
                await client.health(5)

    uvloop.run(check())


async def test_a_health_check_of_nothing_is_node_lost(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:1", f"{UNIX}{tmp_path}/absent"):
        async with opened(url) as client:
            with pytest.raises(NodeLost, match="does not answer"):
                await client.health(5)


async def test_a_line_without_an_end_is_given_up_when_it_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream_http, "MAX_LINE_BYTES", 100_000)

    async def serve(writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM + b"data: ")
        while True:
            writer.write(b"x" * 10_000)
            await writer.drain()

    async with server_that(tmp_path / "s", serve) as client:
        with pytest.raises(NodeLost, match="more than 100000 bytes"):
            await collect(client, "hello")


async def test_more_tokens_than_were_asked_for_are_a_fault(tmp_path: Path) -> None:
    async with server_that(tmp_path / "s", says(STREAM + PIECE * 10_000)) as client:
        with pytest.raises(EngineFailed, match="more than the 6 tokens"):
            await collect(client, "hello")


async def test_events_may_arrive_in_any_pieces_and_pings_are_passed_over(tmp_path: Path) -> None:
    piece = b'data: {"content":"\xc3\xa4","tokens":[1],"tokens_predicted":1}\n\n'

    async def serve(writer: asyncio.StreamWriter) -> None:
        for byte in STREAM + b": ping\n\n" + piece + END:
            writer.write(bytes([byte]))
            await writer.drain()

    async with server_that(tmp_path / "s", serve) as client:
        assert await collect(client, "hello") == [TokenEvent("ä", (1,)), StreamEnd("stop", 1, 2, 0)]


async def test_a_thousand_clients_open_nothing_until_they_are_used() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    clients = [open_upstream(NodeHandle(f"n{i}", 1, f"{UNIX}/nowhere/{i}", "m", 1, 256)) for i in range(1000)]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for client in clients:
        await client.close()


def test_a_slot_state_is_plain_data() -> None:
    assert SlotState(0, True, 7) == SlotState(id=0, is_busy=True, tokens=7)
