"""A chat over HTTP: against llama.cpp's own server, and against what is none."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from llambo.core.errors import BadRequest, PromptTooLong, Refused, Unreachable
from llambo.core.types import Done, GenerateRequest, Sampling, TokenEvent
from llambo.limbot.http_door import HttpDoor
from tests.cluster.llama_server import BUILT_IN, llama_server


async def answer(door: HttpDoor, prompt: str, model: str) -> tuple[str, Done]:
    request = GenerateRequest.from_prompt(prompt, model=model, sampling=Sampling(temperature=0.0, max_tokens=12))
    pieces: list[str] = []
    async with aclosing(door.generate(request)) as events:
        async for event in events:
            match event:
                case TokenEvent():
                    pieces.append(event.text)
                case Done():
                    return "".join(pieces), event
    raise AssertionError("no end")


async def test_a_server_with_a_key_answers_counts_and_tells_what_it_holds() -> None:
    async with llama_server(BUILT_IN, ctx=512, key="llb_secret") as server:
        door = HttpDoor(f"{server.url}/v1/", "llb_secret")
        models = await door.models()
        name = next(iter(models))
        assert await door.context_of(name, 0) == 512
        text, done = await answer(door, "What is a node?", name)
        assert text.startswith("A node")
        assert (done.tokens, done.prompt_tokens, done.finish_reason) == (12, 13, "length")
        assert 0 < done.ttft_ms <= done.time_ms
        again = (await answer(door, "What is a node?", name))[1]
        assert again.cached_tokens == 12
        assert len(await door.tokenize("two words", model=name)) >= 2
        with pytest.raises(PromptTooLong, match="512"):
            await answer(door, "word " * 600, name)
        assert "llb_secret" not in repr(door)
        assert not door.shows_token
        await door.close()


async def test_a_wrong_key_or_none_is_refused_in_words_that_help() -> None:
    async with llama_server(BUILT_IN, key="llb_secret") as server:
        for token, advice in (("", "set LLAMBO_TOKEN"), ("llb_wrong", "refuses the token in LLAMBO_TOKEN")):
            door = HttpDoor(server.url, token)
            with pytest.raises(Refused, match=advice):
                await door.models()
                await answer(door, "hello", "x")
            await door.close()


async def test_what_is_no_server_of_models_is_told() -> None:
    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello")
        writer.close()

    async with await asyncio.start_server(hello, "127.0.0.1", 0) as server:
        door = HttpDoor(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        with pytest.raises(Unreachable, match="not as a server of models"):
            await door.models()
        await door.close()
    for url in ("http://", "http://user:pw@host", "ftp://host"):
        with pytest.raises(BadRequest):
            HttpDoor(url)


def test_a_token_over_plain_http_to_elsewhere_is_known_to_be_readable() -> None:
    assert HttpDoor("http://example.org", "t").shows_token
    assert not HttpDoor("https://example.org", "t").shows_token
    assert not HttpDoor("http://example.org").shows_token
    assert not HttpDoor("http://localhost:1", "t").shows_token
