"""The client of a node's HTTP server: against a real node, and against a server that misbehaves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from llambo.cluster.launch.base import NodeRequest
from llambo.cluster.launch.local import LocalLauncher
from llambo.cluster.upstream import StreamEnd, Upstream
from llambo.core.errors import BadRequest, LlamboError, NodeLost, PromptTooLong
from llambo.core.types import LoadOptions, Message, Sampling, TokenEvent

GREEDY = Sampling(max_tokens=6, temperature=0)


@pytest.fixture
async def upstream(tmp_path: Path, walk_model: Path) -> AsyncIterator[Upstream]:
    launcher = LocalLauncher(tmp_path / "run")
    options = LoadOptions(ctx=256, slots=2, threads=1)
    node = await launcher.spawn(NodeRequest("n1", str(walk_model), options), timeout_s=30)
    client = Upstream(node.name, node.socket_path)
    yield client
    await client.close()
    await launcher.close()


async def collect(upstream: Upstream, prompt: str, sampling: Sampling, *, logprobs: bool = False) -> list[object]:
    return [event async for event in upstream.stream(prompt, sampling, logprobs=logprobs)]


async def test_a_stream_is_tokens_with_ids_and_one_end(upstream: Upstream) -> None:
    *tokens, end = await collect(upstream, "hello", GREEDY)
    assert len(tokens) == 6
    assert all(isinstance(t, TokenEvent) and len(t.ids) == 1 and t.text and t.logprob is None for t in tokens)
    assert isinstance(end, StreamEnd)
    assert (end.finish_reason, end.tokens) == ("length", 6)
    assert end.prompt_tokens > 0


async def test_log_probabilities_come_when_asked_for(upstream: Upstream) -> None:
    *tokens, _ = await collect(upstream, "hello", GREEDY, logprobs=True)
    assert all(isinstance(t, TokenEvent) and t.logprob is not None and t.logprob <= 0 for t in tokens)


async def test_a_repeated_prompt_is_taken_from_the_cache(upstream: Upstream) -> None:
    await collect(upstream, "the very same prompt", GREEDY)
    end = (await collect(upstream, "the very same prompt", GREEDY))[-1]
    assert isinstance(end, StreamEnd)
    assert end.cached_tokens == end.prompt_tokens - 1  # the last token is always computed again


async def test_a_prompt_over_the_context_is_refused_with_both_numbers(upstream: Upstream) -> None:
    with pytest.raises(PromptTooLong, match=r"has \d{3,} tokens and the context holds 256"):
        await collect(upstream, "hello " * 300, GREEDY)


async def test_the_template_ends_where_the_assistant_speaks(upstream: Upstream) -> None:
    text = await upstream.apply_template((Message("system", "S"), Message("user", "U")))
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


async def test_tokenize_parses_specials_and_adds_none(upstream: Upstream) -> None:
    assert await upstream.tokenize("<|im_end|>") == [4]


async def test_closing_the_stream_frees_the_slot(upstream: Upstream) -> None:
    for _ in range(8):  # four times as many as there are slots; each would run for thousands of tokens
        events = upstream.stream("hello", Sampling(temperature=0))
        assert isinstance(await anext(events), TokenEvent)
        await events.aclose()
    async with asyncio.timeout(20):
        assert len(await collect(upstream, "hello", GREEDY)) == 7


async def test_a_closed_client_takes_nothing_new_and_lets_streams_in_flight_go_on(upstream: Upstream) -> None:
    async with aclosing(upstream.stream("hello", GREEDY)) as events:
        await anext(events)
        await upstream.close()
        with pytest.raises(NodeLost, match="was stopped"):
            await collect(upstream, "hello", GREEDY)
        assert len([event async for event in events]) == 6


@asynccontextmanager
async def server_that_says(path: Path, reply: bytes) -> AsyncIterator[Upstream]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    client = Upstream("bad", str(path))
    async with server:
        yield client
        await client.close()


STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"", NodeLost),
        (b"SSH-2.0-OpenSSH\r\n", NodeLost),
        (STREAM + b'data: {"content":"a","tokens":[1]}\n\n', NodeLost),
        (STREAM + b"data: {nonsense}\n\n", NodeLost),
        (STREAM + b'data: {"error":{"message":"out of luck","type":"server_error"}}\n\n', LlamboError),
        (b'HTTP/1.1 400 No\r\n\r\n{"error":{"message":"bad","type":"invalid_request_error"}}', BadRequest),
        (b"HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", LlamboError),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops", NodeLost),
    ],
)
async def test_a_server_that_misbehaves_gives_one_of_our_errors(
    tmp_path: Path, reply: bytes, error: type[LlamboError]
) -> None:
    async with server_that_says(tmp_path / "s", reply) as client:
        with pytest.raises(error):
            await collect(client, "hello", GREEDY)


async def test_events_may_arrive_in_any_pieces_and_pings_are_passed_over(tmp_path: Path) -> None:
    end = b'data: {"content":"","stop":true,"stop_type":"eos","tokens_predicted":1,"tokens_evaluated":2}\n\n'
    reply = STREAM + b': ping\n\ndata: {"content":"\xc3\xa4","tokens":[1]}\n\n' + end

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for byte in reply:
            writer.write(bytes([byte]))
            await writer.drain()
        writer.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        client = Upstream("slow", str(tmp_path / "s"))
        events = await collect(client, "hello", GREEDY)
        await client.close()
    assert events == [TokenEvent("ä", (1,)), StreamEnd("stop", 1, 2, 0)]
