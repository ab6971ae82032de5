"""One answer of several nodes over HTTP, from a cluster's gateway: what is sent, and what its events tell.

The extension of OpenAI's API that docs/gateway.md describes; servers of others do not have it.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

import msgspec

from llambo.cluster.upstream_http import BadStatus, NodeHttp
from llambo.core.errors import BadRequest, EngineFailed, LlamboError, PromptTooLong, from_code
from llambo.core.fusion import Fusion
from llambo.core.fusion_document import cast_of, fusion_of
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent


class _Delta(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Cached | None = None


class _Error(msgspec.Struct):
    message: str = ""
    code: str | int | None = None


class _Extension(msgspec.Struct):
    vote: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None


class _Event(msgspec.Struct):
    """An event of the stream, or the body of a refusal."""

    model: str = ""
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | None = None
    llambo: _Extension | None = None


_decode = msgspec.json.Decoder(_Event).decode
_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError)
_CODES = {"context_length_exceeded": PromptTooLong.code, "model_not_found": "not_found"}
"""OpenAI's names of what has one of ours."""


async def stream(http: NodeHttp, request: GenerateRequest, *, stall_s: float) -> AsyncGenerator[Event, None]:
    """As `Door.generate` with fusion; `stall_s` bounds the silence between two events.

    Raises: `NodeLost` when the server is gone, `NoQuorum`, and what the server reports.
    """
    path, body = body_of(request)
    reading = _Reading(http.who, request.model)
    try:
        async with http.stream(path, body, stall_s=stall_s) as events:
            async for payload in events:
                if payload == b"[DONE]":
                    break
                events.progress()
                for event in reading.take(payload):
                    yield event
    except BadStatus as failure:
        raise _refusal(http.who, failure) from None
    yield reading.end()


def body_of(request: GenerateRequest) -> tuple[str, dict[str, Any]]:
    """The endpoint and its body; what is not set is left to the server."""
    wanted = request.fusion
    assert wanted is not None, "only fusion is asked for here"
    fusion = {
        "strategy": wanted.strategy,
        "nodes": wanted.voters or None,
        "min_consensus": wanted.min_consensus or None,
        "extract": wanted.extract or None,
    }
    extension = {"fusion": _present(fusion), "session": request.session or None, "node_type": request.node_type or None}
    sampling = request.sampling
    body: dict[str, Any] = {
        "model": request.model or None,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "stop": list(request.stop) or None,
        "llambo": _present(extension),
    }
    if request.grammar:
        body["grammar"] = request.grammar
    if request.json_schema:
        schema = {"name": "answer", "strict": True, "schema": json.loads(request.json_schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if request.raw_prompt is not None:
        return "/v1/completions", {**_present(body), "prompt": request.raw_prompt}
    messages = [{"role": message.role, "content": message.content} for message in request.messages]
    return "/v1/chat/completions", {**_present(body), "messages": messages}


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class _Reading:
    """An answer as its events come in."""

    def __init__(self, who: str, model: str) -> None:
        self._who = who
        self._model = model
        self._started = time.perf_counter()
        self._first = 0.0
        self._pieces: list[str] = []
        self._finish_reason: str | None = None
        self._usage = _Usage()
        self._fusion: Fusion | None = None

    def take(self, payload: bytes) -> list[Event]:
        """What an event tells. Raises: the error that it reports, `EngineFailed` for what is none."""
        try:
            event = _decode(payload)
            if event.error is None:
                return self._told(event)
        except (*_MALFORMED, BadRequest) as error:
            raise EngineFailed(f"{self._who} sent an event that cannot be read: {error}") from None
        raise _reported(event.error)

    def _told(self, event: _Event) -> list[Event]:
        found: list[Event] = []
        self._model = event.model or self._model
        if event.usage is not None:
            self._usage = event.usage
        extension = event.llambo or _Extension()
        if extension.fusion is not None:
            self._fusion = fusion_of(extension.fusion)
        if extension.vote is not None:
            found.append(cast_of(extension.vote))
        for choice in event.choices[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            text = choice.text or (choice.delta.content if choice.delta else None)
            if text:
                self._first = self._first or time.perf_counter()
                self._pieces.append(text)
                found.append(TokenEvent(text))
        return found

    def end(self) -> Done:
        """The end of the answer. Raises: `EngineFailed` where it is not whole, or no votes are told."""
        if self._finish_reason is None:
            raise EngineFailed(f"{self._who} ended its answer early")
        if self._fusion is None:
            raise EngineFailed(f"{self._who} answered without a vote: it knows no fusion")
        chosen = next((vote for vote in self._fusion.votes if vote.text == "".join(self._pieces)), None)
        now = time.perf_counter()
        reason: Literal["stop", "length"] = "length" if self._finish_reason == "length" else "stop"
        cached = self._usage.prompt_tokens_details
        return Done(
            reason,
            chosen.model if chosen else self._model,
            chosen.node if chosen else "",
            self._usage.completion_tokens or len(self._pieces),
            self._usage.prompt_tokens,
            cached.cached_tokens if cached else 0,
            ((self._first or now) - self._started) * 1e3,
            (now - self._started) * 1e3,
            fusion=self._fusion,
        )


def _refusal(who: str, failure: BadStatus) -> LlamboError:
    """What a reply without a stream says went wrong."""
    if failure.status == 401:
        return EngineFailed(f"{who} refuses our key (HTTP status 401)")
    try:
        found = _decode(failure.body).error
    except _MALFORMED:
        found = None
    if found is not None and found.message:
        return _reported(found)
    return EngineFailed(f"{who} failed with HTTP status {failure.status} and no reason")


def _reported(error: _Error) -> LlamboError:
    """The server's error as ours."""
    code = str(error.code or "")
    return from_code(_CODES.get(code, code), error.message or "the server failed and gave no reason")
