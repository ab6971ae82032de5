"""The client of a server that has the OpenAI API and nothing more: chats, completions, embeddings, a list of models.

Such a server gives text without ids and applies its template itself, so an answer goes on from it, or on it, by replay
alone. It takes a JSON schema, and no GBNF grammar.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

import msgspec

from llambo.cluster import bounds
from llambo.cluster.failover import Attempt, StreamEnd
from llambo.cluster.launch.base import NodeHandle
from llambo.cluster.mixing import NextToken
from llambo.cluster.upstream_http import BadStatus, NodeHttp
from llambo.cluster.upstream_json import MALFORMED, count, decoded
from llambo.cluster.upstream_llama import PROBE, SlotState, joined
from llambo.cluster.upstream_relay import NodeReply, NotThere, RelayCall, Words, opened
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NodeLost, PromptTooLong
from llambo.core.types import GenerateRequest, TokenEvent

_CALLERS_FAULT = (400, 413, 422)
_TAKES_SEED = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Other endpoints may refuse a member that they do not know."""


class _Logprob(msgspec.Struct):
    logprob: float = 0.0


class _Logprobs(msgspec.Struct):
    """A chat has `content`; a completion `token_logprobs`, or `content` too."""

    content: list[_Logprob] | None = None
    token_logprobs: list[float | None] | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Chunk(msgspec.Struct):
    """One event of a chat or a completion, as far as it is read here."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Embeddings(msgspec.Struct):
    data: list[_Embedding]


class _Fault(msgspec.Struct):
    """A refusal: `error` as OpenAI has it; some servers put its fields at the top."""

    error: _Error | str | None = None
    message: str = ""


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode


class OpenAiUpstream:
    """A node with the OpenAI API; see `Upstream`. `handle.model` is the model asked for."""

    has_ids = False
    probe_kind = "chat"

    def __init__(self, handle: NodeHandle, *, stall_s: float) -> None:
        self._http = NodeHttp(f"node {handle.name}", handle.address, api_key=handle.api_key)
        self._model = handle.model
        self._stall_s = stall_s
        self.node = handle.name
        self.ctx = handle.ctx

    async def close(self) -> None:
        """See `Upstream.close`."""
        await self._http.close()

    async def stream(self, attempt: Attempt) -> AsyncGenerator[TokenEvent | StreamEnd, None]:
        """See `Upstream.stream`; tokens are counted by the server, or one an event where it does not count."""
        path, body = self._body(attempt)
        answer = _Answer()
        most = attempt.sampling.max_tokens
        try:
            async with self._http.stream(path, body, stall_s=self._stall_s) as events:
                async for payload in events:
                    if payload == b"[DONE]":
                        break
                    chunk = decoded(_decode_chunk, payload, self._http.who)
                    if chunk.error is not None:
                        raise self._error_of(500, chunk.error)
                    if answer.take(chunk):
                        events.progress()
                    if most is not None and answer.events > most:
                        raise EngineFailed(f"node {self.node} gave more than the {most} tokens that were asked for")
                    if (event := answer.event) is not None:
                        yield event
        except BadStatus as error:
            raise self._error_of_status(path, error) from None
        if answer.finish_reason is None:
            raise NodeLost(f"node {self.node} ended its answer early")
        yield answer.end()

    async def prompt_text(self, request: GenerateRequest) -> str:
        """See `Upstream.prompt_text`: what was said, joined; the server alone knows what it makes of a chat."""
        return joined(request)

    async def next_token(self, ids: Sequence[int]) -> NextToken:
        """Raises `EngineFailed`: the OpenAI API takes no token ids."""
        raise EngineFailed(f"node {self.node} has only the OpenAI API, which takes no token ids")

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Raises `EngineFailed`: the OpenAI API has no tokenizer."""
        raise EngineFailed(f"node {self.node} has only the OpenAI API, which gives no token ids")

    async def embed(self, text: str) -> list[float]:
        """See `Upstream.embed`."""
        body = {"model": self._model, "input": text}
        try:
            reply = await self._http.post("/v1/embeddings", body, timeout_s=None)
        except BadStatus as error:
            raise self._error_of_status("/v1/embeddings", error) from None
        data = decoded(_decode_embeddings, reply, self._http.who).data
        if not data:
            raise EngineFailed(f"node {self.node} gave no embedding")
        return data[0].embedding

    def relay(self, call: RelayCall) -> AbstractAsyncContextManager[NodeReply]:
        """See `Upstream.relay`: endpoints under /v1 alone, and the model under the name that the server has for it."""
        if not call.path.startswith("/v1/"):
            raise NotThere(f"node {self.node} has only the OpenAI API, which has no {call.path}")
        fields: dict[str, Any] | None = None if call.fields is None else {**call.fields, "model": self._model}
        if fields is not None and call.seed is not None and call.path in _TAKES_SEED:
            fields["seed"] = call.seed
        words = Words(lambda status, body: self._check(call.path, status, body), self._error_in_stream, self._stall_s)
        return opened(self._http, call, fields, words)

    async def health(self, timeout_s: float) -> None:
        """See `Upstream.health`: GET /v1/models, the cheapest request that every such server has."""
        await self._http.check("/v1/models", b"", timeout_s=timeout_s)

    async def probe(self, timeout_s: float) -> str:
        """See `Upstream.probe`: as a chat, which every such server has; whether it computes afresh is its affair."""
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": PROBE.prompt}],
            "max_tokens": PROBE.sampling.max_tokens,
            "temperature": 0,
            "seed": PROBE.sampling.seed,
        }
        try:
            reply = await self._http.post("/v1/chat/completions", body, timeout_s=timeout_s)
        except BadStatus as error:
            raise self._error_of_status("/v1/chat/completions", error) from None
        return decoded(_decode_whole, reply, self._http.who).text

    async def slots(self) -> list[SlotState]:
        """Raises `EngineFailed`: the OpenAI API knows no slots."""
        raise self._no_slots()

    async def save_slot(self, slot: int, filename: str) -> int:
        """Raises `EngineFailed`: the OpenAI API knows no slots."""
        raise self._no_slots()

    async def restore_slot(self, slot: int, filename: str) -> int:
        """Raises `EngineFailed`: the OpenAI API knows no slots."""
        raise self._no_slots()

    def _no_slots(self) -> EngineFailed:
        return EngineFailed(f"node {self.node} has only the OpenAI API, which knows no slots")

    def _body(self, attempt: Attempt) -> tuple[str, dict[str, Any]]:
        """The endpoint and its body; what is None is left to the server."""
        if attempt.grammar:
            raise EngineFailed(f"node {self.node} has only the OpenAI API, which takes a JSON schema and no grammar")
        if not isinstance(attempt.prompt, str):
            raise EngineFailed(f"node {self.node} has only the OpenAI API, which takes no token ids")
        sampling = attempt.sampling
        body: dict[str, Any] = {"model": self._model, "stream": True, "stream_options": {"include_usage": True}}
        for name in ("max_tokens", "temperature", "top_p", "seed"):
            value = getattr(sampling, name)
            if value is not None:
                body[name] = value
        if attempt.stop:
            body["stop"] = attempt.stop
        if attempt.json_schema:
            schema = {"name": "answer", "strict": True, "schema": bounds.schema(attempt.json_schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        if attempt.messages:
            body["messages"] = [{"role": m.role, "content": m.content} for m in attempt.messages]
            if attempt.logprobs:
                body["logprobs"] = True
            return "/v1/chat/completions", body
        body["prompt"] = attempt.prompt
        if attempt.logprobs:
            body["logprobs"] = 1
        return "/v1/completions", body

    def _check(self, path: str, status: int, body: bytes) -> PromptTooLong | None:
        """Raises for a refusal that is not the request's own fault."""
        if status in (404, 405):
            raise NotThere(f"node {self.node} has no {path} for its model {self._model}")
        error = self._error_of_status(path, BadStatus(status, body))
        if status not in _CALLERS_FAULT:
            raise error
        return error if isinstance(error, PromptTooLong) else None

    def _error_in_stream(self, error: object) -> LlamboError:
        """What an event says went wrong."""
        try:
            return self._error_of(500, msgspec.convert(error, _Error | str))
        except msgspec.ValidationError:
            return EngineFailed(f"node {self.node} failed in the middle of its answer")

    def _error_of_status(self, path: str, failure: BadStatus) -> LlamboError:
        match failure.status:
            case 401 | 403:
                return EngineFailed(f"node {self.node} refuses our key (HTTP status {failure.status})")
            case 404 | 405:
                return EngineFailed(f"node {self.node} has no {path} for its model {self._model}")
        try:
            fault = msgspec.json.decode(failure.body, type=_Fault)
        except MALFORMED:
            return EngineFailed(f"node {self.node} failed with HTTP status {failure.status} and no reason")
        return self._error_of(failure.status, fault.error or _Error(fault.message))

    def _error_of(self, status: int, error: _Error | str) -> LlamboError:
        message = error if isinstance(error, str) else error.message
        if isinstance(error, _Error) and error.code == "context_length_exceeded":
            return PromptTooLong(message)
        if status in _CALLERS_FAULT:
            return BadRequest(message or f"node {self.node} refused the request")
        return EngineFailed(f"node {self.node} failed: {message or f'HTTP status {status}'}")


class _Message(msgspec.Struct):
    content: str | None = None


class _WholeChoice(msgspec.Struct):
    message: _Message


class _Whole(msgspec.Struct):
    """A chat that was not streamed."""

    choices: list[_WholeChoice]

    @property
    def text(self) -> str:
        return (self.choices[0].message.content or "") if self.choices else ""


_decode_whole = msgspec.json.Decoder(_Whole).decode


class _Answer:
    """An answer as its events come in: the newest one's text, and what the end will say."""

    def __init__(self) -> None:
        self.event: TokenEvent | None = None
        self.finish_reason: str | None = None
        self.events = 0
        self._usage = _Usage()

    def take(self, chunk: _Chunk) -> bool:
        """Whether `chunk` brought the answer on."""
        self.event = None
        if chunk.usage is not None:
            self._usage = chunk.usage
        if not chunk.choices:
            return chunk.usage is not None
        choice = chunk.choices[0]
        self.finish_reason = choice.finish_reason or self.finish_reason
        text = choice.text or (choice.delta.content if choice.delta else None)
        if text:
            self.events += 1
            self.event = TokenEvent(text, (), _logprob(choice.logprobs))
        thinks = choice.delta is not None and choice.delta.reasoning_content
        return bool(text or thinks or choice.finish_reason)

    def end(self) -> StreamEnd:
        usage = self._usage
        tokens = count(usage.completion_tokens) or self.events
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        reason: Literal["stop", "length"] = "length" if self.finish_reason == "length" else "stop"
        return StreamEnd(reason, tokens, count(usage.prompt_tokens), count(cached))


def _logprob(found: _Logprobs | None) -> float | None:
    if found is None:
        return None
    values = [p.logprob for p in found.content or ()] or [p for p in found.token_logprobs or () if p is not None]
    return sum(values) if values else None
