"""The client of one node's native HTTP server: turns llama.cpp's replies into our events and errors.

Knows llama-server's endpoints (tools/server/README.md in llama.cpp) and nothing of models, queues or other nodes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import msgspec

from llambo.core.errors import BadRequest, LlamboError, NodeLost, PromptTooLong
from llambo.core.types import Message, Sampling, TokenEvent

_BASE = "http://node"  # the host of a URL means nothing on a Unix socket
_JSON = {"Content-Type": "application/json"}
# An engine that pools must take a text as one batch, and its batch is its context.
_TOO_LONG_TO_POOL = re.compile(r"input \((\d+) tokens\) is too large to process.*current batch size: (\d+)")
_encode = msgspec.json.Encoder().encode


class _Probability(msgspec.Struct):
    logprob: float


class _Timings(msgspec.Struct):
    cache_n: int = 0


class _Error(msgspec.Struct):
    message: str = ""
    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class _Chunk(msgspec.Struct):
    """One event of /completion, as far as it is read here."""

    content: str = ""
    tokens: list[int] = []
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    completion_probabilities: list[_Probability] = []
    timings: _Timings | None = None
    error: _Error | None = None


class _Reply(msgspec.Struct):
    """The replies of the small endpoints, each with the fields it has."""

    prompt: str = ""
    tokens: list[int] = []
    data: list[dict[str, Any]] = []
    error: _Error | None = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_reply = msgspec.json.Decoder(_Reply).decode


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The last event of a node's answer."""

    finish_reason: Literal["stop", "length"]
    tokens: int
    prompt_tokens: int
    cached_tokens: int


class Upstream:
    """One node's HTTP server on the Unix socket `socket_path`; `node` is its name for error messages."""

    def __init__(self, node: str, socket_path: str) -> None:
        self._node = node
        # The server closes a connection after each stream; a connection kept alive would now and then be a dead one.
        connector = aiohttp.UnixConnector(socket_path, limit=0, force_close=True)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), auto_decompress=False
        )
        self._in_flight = 0
        self._is_closing = False

    async def close(self) -> None:
        """Refuses new requests with `NodeLost`; what is in flight ends with its node, and then the session is closed.

        End the node first: aiohttp leaves a reader waiting for ever whose session is closed under it.
        """
        self._is_closing = True
        await self._close_when_idle()

    async def _close_when_idle(self) -> None:
        if self._is_closing and not self._in_flight:
            await self._session.close()

    async def apply_template(self, messages: tuple[Message, ...]) -> str:
        """The prompt text that the model's chat template makes of `messages`, up to where the assistant speaks."""
        body = {"messages": [{"role": m.role, "content": m.content} for m in messages]}
        return (await self._post("/apply-template", body)).prompt

    async def tokenize(self, text: str) -> list[int]:
        """The token ids of `text`: special tokens are parsed, none is added."""
        return (await self._post("/tokenize", {"content": text, "parse_special": True})).tokens

    async def embed(self, text: str) -> list[float]:
        """The normalised embedding of `text`; the node must have been started for embeddings."""
        reply = await self._post("/v1/embeddings", {"input": text})
        return [float(x) for x in reply.data[0]["embedding"]]

    async def stream(
        self, prompt: str, sampling: Sampling, *, logprobs: bool = False
    ) -> AsyncGenerator[TokenEvent | StreamEnd, None]:
        """Token events as the node makes them, then one `StreamEnd`.

        Closing the generator closes the connection, on which llama.cpp stops decoding and frees the slot.

        Raises: `PromptTooLong`, `BadRequest`, `NodeLost`.
        """
        body = _completion_body(prompt, sampling, logprobs=logprobs)
        async with self._request("/completion", body) as reply:
            if reply.status != 200:
                raise _error_of(_decode_reply(await reply.read()).error)
            async for payload in _payloads(reply.content):
                chunk = _decode_chunk(payload)
                if chunk.error is not None:
                    raise _error_of(chunk.error)
                if chunk.content or chunk.tokens:
                    yield _token_event(chunk)
                if chunk.stop:
                    yield _stream_end(chunk)
                    return
        raise NodeLost(f"node {self._node} ended its answer early")

    async def _post(self, path: str, body: dict[str, Any]) -> _Reply:
        async with self._request(path, body) as response:
            reply = _decode_reply(await response.read())
        if reply.error is not None:
            raise _error_of(reply.error)
        return reply

    @asynccontextmanager
    async def _request(self, path: str, body: dict[str, Any]) -> AsyncIterator[aiohttp.ClientResponse]:
        """One POST in flight; whatever goes wrong with the connection or the reply's form is `NodeLost`."""
        if self._is_closing:
            raise NodeLost(f"node {self._node} was stopped")
        self._in_flight += 1
        try:
            async with self._session.post(f"{_BASE}{path}", data=_encode(body), headers=_JSON) as response:
                yield response
        except (aiohttp.ClientError, ConnectionError, msgspec.DecodeError) as error:
            raise NodeLost(f"node {self._node} does not answer: {str(error) or type(error).__name__}") from None
        finally:
            self._in_flight -= 1
            await self._close_when_idle()


def _completion_body(prompt: str, sampling: Sampling, *, logprobs: bool) -> dict[str, Any]:
    """The body for llama-server's /completion; what is None is left to the engine's defaults."""
    body: dict[str, Any] = {"prompt": prompt, "stream": True, "return_tokens": True, "cache_prompt": True}
    if sampling.max_tokens is not None:
        body["n_predict"] = sampling.max_tokens
    for name in ("temperature", "top_p", "seed"):
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    if logprobs:
        body["n_probs"] = 1
    return body


async def _payloads(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The JSON text of each server-sent event; comments (pings) are passed over."""
    pending = b""
    async for piece in content.iter_any():
        *events, pending = (pending + piece).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: "):
                yield event[6:]


def _token_event(chunk: _Chunk) -> TokenEvent:
    probabilities = chunk.completion_probabilities
    return TokenEvent(chunk.content, tuple(chunk.tokens), probabilities[0].logprob if probabilities else None)


def _stream_end(chunk: _Chunk) -> StreamEnd:
    cached = chunk.timings.cache_n if chunk.timings else 0
    reason: Literal["stop", "length"] = "length" if chunk.stop_type == "limit" else "stop"
    return StreamEnd(reason, chunk.tokens_predicted, chunk.tokens_evaluated, cached)


def _too_long(what: str, tokens: int, ctx: int) -> PromptTooLong:
    return PromptTooLong(
        f"the {what} has {tokens} tokens and the context holds {ctx}; shorten it or load the model with a larger ctx"
    )


def _error_of(error: _Error | None) -> LlamboError:
    match error:
        case _Error(type="exceed_context_size_error"):
            return _too_long("prompt", error.n_prompt_tokens, error.n_ctx)
        case _Error() if found := _TOO_LONG_TO_POOL.search(error.message):
            return _too_long("text", int(found[1]), int(found[2]))
        case _Error(type="invalid_request_error"):
            return BadRequest(error.message)
        case _Error():
            return LlamboError(f"the engine failed: {error.message}")
        case None:
            return LlamboError("the engine failed without saying why")
