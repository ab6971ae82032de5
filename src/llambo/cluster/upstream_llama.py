"""The client of llama.cpp's own HTTP server: turns its replies into our events and errors.

Knows llama-server's endpoints (tools/server/README.md in llama.cpp) and nothing of models, queues or other nodes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec

from llambo.cluster import bounds, upstream_next
from llambo.cluster.failover import Attempt, StreamEnd
from llambo.cluster.launch.base import TEMPLATE, TOKEN_IDS, NodeHandle
from llambo.cluster.mixing import NextToken
from llambo.cluster.upstream_http import BadStatus, NodeHttp
from llambo.cluster.upstream_json import count, decoded
from llambo.cluster.upstream_relay import NodeReply, NotThere, RelayCall, Words, opened
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, NodeLost, PromptTooLong
from llambo.core.llama_fault import LlamaFault, fault_in
from llambo.core.types import GenerateRequest, Sampling, TokenEvent
from llambo.engine.memory import CTX_GRANULE

PROBE = Attempt("Once upon a time", sampling=Sampling(max_tokens=4, temperature=0, seed=1), cache_prompt=False)
"""What `probe` asks: greedy, and computed afresh, so that no slot's past can show in it."""

_TELLS_NO_PROGRESS = frozenset({"/v1/messages"})
"""Endpoints that stream and take no `return_progress`: llama-server translates those bodies, and leaves it out."""
_NOT_THE_REQUEST = frozenset({401, 403, 408, 429})
"""Refusals that are between the node and us."""
_CALLERS_FAULT = re.compile(r"\[json\.exception\.|Failed to parse |vector::_M_range_check")
"""What the engine calls its own fault (500) and is the caller's: a member of another type than it takes, messages that
its template cannot hold, a token that the vocabulary has not."""
_NOT_SUPPORTED = 501
_TRUE = msgspec.Raw(b"true")

_T = TypeVar("_T")
_SLOT_FILE_S = 60.0  # a slot of a large context is gigabytes
# An engine that pools must take a text as one batch, and its batch is its context.
_TOO_LONG_TO_POOL = re.compile(r"input \((\d+) tokens\) is too large to process.*current batch size: (\d+)")


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot of an engine: `tokens` are those of its last or present sequence, prompt and answer."""

    id: int
    is_busy: bool
    tokens: int


class _Probability(msgspec.Struct):
    logprob: float


class _Timings(msgspec.Struct):
    cache_n: int = 0
    predicted_ms: float = 0.0


class _Progress(msgspec.Struct):
    processed: int = 0


class _Chunk(msgspec.Struct):
    """One event of /completion, as far as it is read here."""

    content: str = ""
    tokens: list[int] = []
    stop: bool = False
    stop_type: str = ""
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    completion_probabilities: list[_Probability] = []
    prompt_progress: _Progress | None = None
    timings: _Timings | None = None
    error: LlamaFault | None = None


class _Embedding(msgspec.Struct):
    embedding: list[float]


class _Slot(msgspec.Struct):
    id: int
    is_processing: bool
    n_prompt_tokens: int = 0


class _Reply(msgspec.Struct):
    """The replies of the small endpoints, each with the fields it has."""

    prompt: str = ""
    tokens: list[int] = []
    data: list[_Embedding] = []
    n_saved: int = 0
    n_restored: int = 0


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_slots = msgspec.json.Decoder(list[_Slot]).decode


class LlamaUpstream:
    """A node with llama.cpp's own server; see `Upstream`."""

    probe_kind = "completion"

    def __init__(self, handle: NodeHandle, *, stall_s: float) -> None:
        self._http = NodeHttp(f"node {handle.name}", handle.address, api_key=handle.api_key)
        self._has_template = TEMPLATE in handle.features
        self.has_ids = TOKEN_IDS in handle.features
        self.node = handle.name
        # Of a node of ours the handle may have what was asked for; llama.cpp rounds it up.
        self.ctx = -(-handle.ctx // CTX_GRANULE) * CTX_GRANULE if handle.pid else handle.ctx
        self._stall_s = stall_s

    async def close(self) -> None:
        """See `Upstream.close`."""
        await self._http.close()

    async def stream(self, attempt: Attempt) -> AsyncGenerator[TokenEvent | StreamEnd, None]:
        """See `Upstream.stream`."""
        pieces = _Pieces()
        most = attempt.sampling.max_tokens
        try:
            async with self._http.stream("/completion", _completion_body(attempt), stall_s=self._stall_s) as events:
                async for payload in events:
                    chunk = decoded(_decode_chunk, payload, self._http.who)
                    if chunk.error is not None:
                        raise self._error_of(chunk.error)
                    if chunk.stop:
                        yield _stream_end(chunk)
                        return
                    if chunk.prompt_progress is not None:  # its "tokens" are none
                        events.progress()
                        continue
                    if not chunk.content and not chunk.tokens:
                        continue
                    events.progress()
                    if most is not None and pieces.chunks >= most:
                        raise EngineFailed(f"node {self.node} gave more than the {most} tokens that were asked for")
                    if (event := pieces.take(chunk)) is not None:
                        yield event
        except BadStatus as error:
            raise self._error_of_status(error) from None
        raise NodeLost(f"node {self.node} ended its answer early")

    async def prompt_text(self, request: GenerateRequest) -> str:
        """See `Upstream.prompt_text`."""
        if request.raw_prompt is not None:
            return request.raw_prompt
        if not self._has_template:
            return joined(request)
        body = {"messages": [{"role": m.role, "content": m.content} for m in request.messages]}
        return (await self._post("/apply-template", body, self._stall_s)).prompt

    async def next_token(self, ids: Sequence[int]) -> NextToken:
        """See `Upstream.next_token`."""
        reply = self._http.post("/completion", upstream_next.body(ids), timeout_s=None)
        found = upstream_next.next_token(await self._read(upstream_next.decode_step, reply))
        if found is None:
            raise EngineFailed(f"node {self.node} does not tell what may come next")
        return found

    async def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """See `Upstream.tokenize`."""
        body = {"content": text, "add_special": add_special, "parse_special": True}
        return (await self._post("/tokenize", body, self._stall_s)).tokens

    async def embed(self, text: str) -> list[float]:
        """See `Upstream.embed`."""
        data = (await self._post("/v1/embeddings", {"input": text}, None)).data
        if not data:
            raise EngineFailed(f"node {self.node} gave no embedding")
        return data[0].embedding

    def relay(self, call: RelayCall) -> AbstractAsyncContextManager[NodeReply]:
        """See `Upstream.relay`: every endpoint that llama-server has."""
        fields: dict[str, Any] | None = None if call.fields is None else dict(call.fields)
        tells = drops = False
        if fields is not None and call.streams and call.path not in _TELLS_NO_PROGRESS:
            tells = fields.get("return_progress", _TRUE) == _TRUE
            drops = "return_progress" not in fields
            fields.setdefault("return_progress", _TRUE)
        if fields is not None and call.seed is not None:
            fields["seed"] = call.seed
        words = Words(self._check, self._error_in_stream, self._stall_s, is_watched=tells, drops_progress=drops)
        return opened(self._http, call, fields, words)

    async def health(self, timeout_s: float) -> None:
        """See `Upstream.health`: GET /health."""
        await self._http.check("/health", b'"ok"', timeout_s=timeout_s)

    async def probe(self, timeout_s: float) -> str:
        """See `Upstream.probe`."""
        body = _completion_body(PROBE) | {"stream": False, "return_progress": False, "ignore_eos": True}
        return (await self._read(_decode_chunk, self._http.post("/completion", body, timeout_s=timeout_s))).content

    async def slots(self) -> list[SlotState]:
        """See `Upstream.slots`."""
        slots = await self._read(_decode_slots, self._http.get("/slots", timeout_s=self._stall_s))
        return [SlotState(slot.id, slot.is_processing, slot.n_prompt_tokens) for slot in slots]

    async def save_slot(self, slot: int, filename: str) -> int:
        """See `Upstream.save_slot`."""
        return (await self._post(f"/slots/{slot}?action=save", {"filename": filename}, _SLOT_FILE_S)).n_saved

    async def restore_slot(self, slot: int, filename: str) -> int:
        """See `Upstream.restore_slot`."""
        return (await self._post(f"/slots/{slot}?action=restore", {"filename": filename}, _SLOT_FILE_S)).n_restored

    async def _post(self, path: str, body: dict[str, Any], timeout_s: float | None) -> _Reply:
        return await self._read(_decode_reply, self._http.post(path, body, timeout_s=timeout_s))

    async def _read(self, decode: Callable[[bytes], _T], reply: Awaitable[bytes]) -> _T:
        try:
            return decoded(decode, await reply, self._http.who)
        except BadStatus as error:
            raise self._error_of_status(error) from None

    def _error_of_status(self, failure: BadStatus) -> LlamboError:
        fault = fault_in(failure.body)
        if fault is None:
            return EngineFailed(f"node {self.node} failed with HTTP status {failure.status} and no reason")
        return self._error_of(fault)

    def _check(self, status: int, body: bytes) -> PromptTooLong | None:
        """Raises for a refusal that is not the request's own fault."""
        if status in (404, 405):
            raise NotThere(f"node {self.node} has no such endpoint")
        error = self._error_of_status(BadStatus(status, body))
        if status == _NOT_SUPPORTED:  # by the model, whichever node has it
            raise BadRequest(error.message)
        if status in _NOT_THE_REQUEST or not 400 <= status < 500:
            raise error
        return error if isinstance(error, PromptTooLong) else None

    def _error_in_stream(self, error: object) -> LlamboError:
        """What an event says went wrong."""
        if isinstance(error, dict) and isinstance(error.get("error"), dict):
            error = error["error"]
        try:
            return self._error_of(msgspec.convert(error, LlamaFault))
        except msgspec.ValidationError:
            return EngineFailed(f"node {self.node} failed in the middle of its answer")

    def _error_of(self, error: LlamaFault) -> LlamboError:
        match error:
            case LlamaFault(type="exceed_context_size_error"):
                return _too_long("prompt", error.n_prompt_tokens, error.n_ctx)
            case LlamaFault() if found := _TOO_LONG_TO_POOL.search(error.message):
                return _too_long("text", int(found[1]), int(found[2]))
            case LlamaFault(type="invalid_request_error"):
                return BadRequest(error.message)
            case LlamaFault() if _CALLERS_FAULT.search(error.message):
                return BadRequest(error.message)
            case _:
                return EngineFailed(f"node {self.node} failed: {error.message or 'without saying why'}")


class _Pieces:
    """Makes events of chunks: waits for text, and gives ids only where there is one for each token.

    A chunk has no text while the engine holds some back that may begin a stop text, and for a token without one. It has
    too few ids where a character spans tokens: the engine then tells the last one only, but counts them all.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self._ids: list[int] = []
        self._seen = 0  # tokens
        self._logprob: float | None = None

    def take(self, chunk: _Chunk) -> TokenEvent | None:
        self.chunks += 1
        self._ids += chunk.tokens
        for probability in chunk.completion_probabilities:
            self._logprob = (self._logprob or 0.0) + probability.logprob
        if not chunk.content:
            return None
        is_whole = len(self._ids) == chunk.tokens_predicted - self._seen
        event = TokenEvent(chunk.content, tuple(self._ids) if is_whole else (), self._logprob)
        self._ids, self._seen, self._logprob = [], chunk.tokens_predicted, None
        return event


def joined(request: GenerateRequest) -> str:
    """The prompt of a model without a template: what was said, apart."""
    if request.raw_prompt is not None:
        return request.raw_prompt
    return "\n\n".join(message.content for message in request.messages)


def _completion_body(attempt: Attempt) -> dict[str, Any]:
    """The body for llama-server's /completion; what is None is left to the engine's defaults."""
    body: dict[str, Any] = {
        "prompt": attempt.prompt,
        "stream": True,
        "return_tokens": True,
        "return_progress": True,  # so that a long prefill shows
        "cache_prompt": attempt.cache_prompt,
    }
    sampling = attempt.sampling
    if sampling.max_tokens is not None:
        body["n_predict"] = sampling.max_tokens
    for name in ("temperature", "top_p", "seed"):
        value = getattr(sampling, name)
        if value is not None:
            body[name] = value
    if attempt.stop:
        body["stop"] = attempt.stop
    if attempt.grammar:
        body["grammar"] = attempt.grammar
    if attempt.json_schema:
        body["json_schema"] = bounds.schema(attempt.json_schema)
    if attempt.logprobs:
        body["n_probs"] = 1
    return body


def _stream_end(chunk: _Chunk) -> StreamEnd:
    timings = chunk.timings or _Timings()
    reason: Literal["stop", "length"] = "length" if chunk.stop_type == "limit" else "stop"
    return StreamEnd(
        reason,
        count(chunk.tokens_predicted),
        count(chunk.tokens_evaluated),
        count(timings.cache_n),
        max(0.0, timings.predicted_ms) / 1e3,
    )


def _too_long(what: str, tokens: int, ctx: int) -> PromptTooLong:
    return PromptTooLong(
        f"the {what} has {tokens} tokens and the context holds {ctx}; shorten it or load the model with a larger ctx"
    )
