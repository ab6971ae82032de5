"""The client of the OpenAI API: against llama.cpp's own, and against servers that speak it in other ways, or badly."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from llambo.cluster.launch.base import EMBEDDING, GENERATE, UNIX, NodeHandle
from llambo.cluster.upstream import Attempt, StreamEnd, Upstream, open_upstream
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NodeLost, PromptTooLong
from llambo.core.types import GenerateRequest, Message, Sampling, TokenEvent
from tests.cluster.llama_server import llama_server

GREEDY = Sampling(max_tokens=6, temperature=0)
CHAT = Attempt("hello", (Message("user", "hello"),), GREEDY)
BARE = Attempt("hello", sampling=GREEDY)
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@asynccontextmanager
async def opened(address: str, *, key: str = "", stall_s: float = 30) -> AsyncIterator[Upstream]:
    features = frozenset({GENERATE, EMBEDDING})
    handle = NodeHandle("a1", 0, address, "m", 4, 0, model="some/model", features=features, api_key=key)
    client = open_upstream(handle, stall_s=stall_s)
    try:
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def server_that_says(
    path: Path, *pieces: bytes, stall_s: float = 30, key: str = ""
) -> AsyncIterator[tuple[Upstream, list[bytes]]]:
    """A server that answers each request with `pieces`, hangs up (never, after b""), and what it heard."""
    heard: list[bytes] = []
    is_over = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(v) for k, _, v in map(_header, head.split(b"\r\n")) if k == b"content-length"), 0)
            heard.append(head + await reader.readexactly(length))
            for piece in pieces:
                if not piece:
                    await is_over.wait()
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass  # the client has heard enough
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, path)
    async with server:
        async with opened(f"{UNIX}{path}", stall_s=stall_s, key=key) as client:
            yield client, heard
        is_over.set()


def _header(line: bytes) -> tuple[bytes, bytes, bytes]:
    name, colon, value = line.partition(b":")
    return name.lower(), colon, value


def event(value: dict[str, Any] | str) -> bytes:
    return b"data: " + (value.encode() if isinstance(value, str) else json.dumps(value).encode()) + b"\r\n\r\n"


def delta(text: str | None, reason: str | None = None, **more: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason, **more}]})


async def collect(client: Upstream, attempt: Attempt = CHAT) -> list[TokenEvent | StreamEnd]:
    return [event async for event in client.stream(attempt)]


async def test_llama_cpps_own_openai_api_answers_chats_and_bare_prompts(walk_model: Path) -> None:
    async with llama_server(walk_model) as server, opened(server.url) as client:
        for attempt in (CHAT, BARE):
            *tokens, end = await collect(client, attempt)
            assert len(tokens) == 6
            assert all(isinstance(t, TokenEvent) and t.text and not t.ids and t.logprob is None for t in tokens)
            assert isinstance(end, StreamEnd)
            assert (end.finish_reason, end.tokens) == ("length", 6)
            assert end.prompt_tokens > 0
        await client.health(5)
        assert await client.probe(20) == await client.probe(20) != ""


@pytest.mark.parametrize("attempt", [CHAT, BARE])
async def test_log_probabilities_come_when_asked_for(walk_model: Path, attempt: Attempt) -> None:
    asked = Attempt(attempt.prompt, attempt.messages, GREEDY, logprobs=True)
    async with llama_server(walk_model) as server, opened(server.url) as client:
        *tokens, _ = await collect(client, asked)
        assert all(isinstance(t, TokenEvent) and t.logprob is not None and t.logprob <= 0 for t in tokens)


async def test_a_json_schema_and_stop_texts_are_asked_for_and_a_wrong_schema_is_the_callers_fault(
    tmp_path: Path,
) -> None:
    asked = Attempt("x", CHAT.messages, GREEDY, stop=("a", "b"), json_schema='{"type":"null"}')
    async with server_that_says(tmp_path / "s", STREAM, delta("null", "stop"), event("[DONE]")) as (client, heard):
        await collect(client, asked)
        with pytest.raises(BadRequest, match="not JSON"):
            await collect(client, Attempt("x", CHAT.messages, json_schema="{"))
    body = json.loads(heard[0].partition(b"\r\n\r\n")[2])
    assert body["stop"] == ["a", "b"]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "null"}
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("some/model", 6, 0)
    assert "seed" not in body


async def test_the_key_goes_out_as_a_bearer_token_and_into_no_message(tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 401 No\r\nContent-Length: 2\r\n\r\n{}"
    async with server_that_says(tmp_path / "s", refusal, key="open-sesame") as (client, heard):
        with pytest.raises(EngineFailed, match="refuses our key") as caught:
            await collect(client)
        with pytest.raises(NodeLost) as lost:
            await client.health(5)
    assert all(b"Authorization: Bearer open-sesame\r\n" in request for request in heard)
    assert len(heard) == 2
    assert "open-sesame" not in f"{caught.value!r}{lost.value!r}{client!r}"


async def test_tokens_are_counted_where_the_server_does_not_and_lines_may_end_either_way(tmp_path: Path) -> None:
    pieces = (STREAM, delta(None), delta("a").replace(b"\r", b""), b": ping\n\n", delta("é"), delta("", "stop"))
    async with server_that_says(tmp_path / "s", *pieces) as (client, _):
        assert await collect(client) == [TokenEvent("a"), TokenEvent("é"), StreamEnd("stop", 2, 0, 0)]


async def test_what_the_server_counts_is_believed(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    pieces = (STREAM, delta("ab"), delta(None, "length"), event({"choices": [], "usage": usage}), event("[DONE]"))
    async with server_that_says(tmp_path / "s", *pieces) as (client, _):
        assert await collect(client) == [TokenEvent("ab"), StreamEnd("length", 5, 9, 4)]


@pytest.mark.parametrize("told", [-7, 10**30, None])
async def test_a_count_that_cannot_be_is_not_believed(tmp_path: Path, told: int | None) -> None:
    usage = {"prompt_tokens": told, "completion_tokens": told, "prompt_tokens_details": {"cached_tokens": told}}
    pieces = (STREAM, delta("ab", "stop"), event({"choices": [], "usage": usage}), event("[DONE]"))
    async with server_that_says(tmp_path / "s", *pieces) as (client, _):
        assert client.probe_kind == "chat"
        assert await collect(client) == [TokenEvent("ab"), StreamEnd("stop", 1, 0, 0)]


async def test_thinking_is_progress_and_no_text(tmp_path: Path) -> None:
    thought = event({"choices": [{"delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    async with server_that_says(tmp_path / "s", STREAM, thought, delta("a", "stop")) as (client, _):
        assert await collect(client) == [TokenEvent("a"), StreamEnd("stop", 1, 0, 0)]


OVERFLOW = b'{"error":{"message":"maximum context length is 8 tokens","code":"context_length_exceeded"}}'


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (b"SSH-2.0-OpenSSH\r\n", NodeLost),
        (STREAM, NodeLost),
        (STREAM + delta("a"), NodeLost),
        (STREAM + delta("a") + event("[DONE]"), NodeLost),
        (STREAM + b"data: {nonsense}\n\n", NodeLost),
        (STREAM + b'data: {"choices":7}\n\n', NodeLost),
        (STREAM + b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n', NodeLost),
        (STREAM + b'data: {"x":' + b"[" * 100_000 + b"\n\n", NodeLost),
        (b'HTTP/1.1 500 No\r\n\r\n{"message":"\xff"}', EngineFailed),
        (STREAM + event({"error": {"message": "out of luck"}}), EngineFailed),
        (STREAM + event({"error": "out of luck"}), EngineFailed),
        (STREAM + delta("a") * 50, EngineFailed),
        (b"HTTP/1.1 400 No\r\n\r\n" + OVERFLOW, PromptTooLong),
        (b'HTTP/1.1 400 No\r\n\r\n{"error":{"message":"bad"}}', BadRequest),
        (b'HTTP/1.1 422 No\r\n\r\n{"object":"error","message":"bad","code":422}', BadRequest),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", EngineFailed),
        (b"HTTP/1.1 429 No\r\nContent-Length: 2\r\n\r\n{}", EngineFailed),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops", EngineFailed),
        (b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n", EngineFailed),
    ],
)
async def test_a_server_that_misbehaves_gives_one_of_our_errors(
    tmp_path: Path, reply: bytes, error: type[LlamboError]
) -> None:
    async with server_that_says(tmp_path / "s", reply) as (client, _):
        with pytest.raises(error) as caught:
            await collect(client)
        assert type(caught.value) is error


@pytest.mark.parametrize("said", [(), (STREAM, delta("a"))])
async def test_a_server_that_says_nothing_or_stops_talking_is_lost(tmp_path: Path, said: tuple[bytes, ...]) -> None:
    async with server_that_says(tmp_path / "s", *said, b"", stall_s=0.3) as (client, _):
        with pytest.raises(NodeLost, match=r"gave nothing for 0\.3 s"):
            await collect(client)


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.tokenize("a"),
        lambda client: client.slots(),
        lambda client: client.save_slot(0, "a"),
        lambda client: client.restore_slot(0, "a"),
        lambda client: anext(client.stream(Attempt((1, 2)))),
        lambda client: anext(client.stream(Attempt("a", grammar="root ::= x"))),
    ],
)
async def test_what_the_openai_api_has_not_is_said_to_be_so(tmp_path: Path, call: Callable[[Upstream], Any]) -> None:
    async with opened(f"{UNIX}{tmp_path}/absent") as client:
        with pytest.raises(EngineFailed, match="only the OpenAI API"):
            await call(client)


async def test_embeddings_come_from_the_openai_api_too(walk_model: Path, tmp_path: Path) -> None:
    async with llama_server(walk_model, slots=1, embedding=True) as server, opened(server.url) as client:
        assert sum(x * x for x in await client.embed("hello")) == pytest.approx(1.0, abs=1e-3)
    for reply, error in ((b'{"data":[]}', EngineFailed), (b"{}", NodeLost)):
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(reply)
        async with server_that_says(tmp_path / "s", head + reply) as (client, _):
            with pytest.raises(error):
                await client.embed("hello")


async def test_the_prompts_text_is_what_was_said(tmp_path: Path) -> None:
    async with opened(f"{UNIX}{tmp_path}/absent") as client:
        assert await client.prompt_text(GenerateRequest.from_prompt("U", system="S")) == "S\n\nU"
        assert await client.prompt_text(GenerateRequest(raw_prompt="bare")) == "bare"
