"""A chat over HTTP: any server with the OpenAI API, a cluster's gateway among them, as a door.

Owns what such a server is asked beside answers: its models and how much they hold. The streams are the cluster's own
client's business.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import msgspec

from llambo.cluster.failover import Attempt, StreamEnd
from llambo.cluster.launch.attach import parse_url
from llambo.cluster.launch.base import NodeHandle
from llambo.cluster.upstream_http import BadStatus, NodeHttp
from llambo.cluster.upstream_openai import OpenAiUpstream
from llambo.core.errors import (
    BadRequest,
    EngineFailed,
    LlamboError,
    NodeLost,
    NotFound,
    PromptTooLong,
    Refused,
    TimedOut,
    Unreachable,
)
from llambo.core.types import Done, Event, GenerateRequest
from llambo.limbot import http_fusion

STALL_S = 120.0
LOOK_S = 10.0
_TOO_LONG = re.compile(r"context (size|length|window)", re.IGNORECASE)
"""What servers say of a prompt over their context that give it no code of its own."""
_REFUSED = "refuses our key"
_MALFORMED = (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError)


class _Meta(msgspec.Struct):
    n_ctx: int = 0


class _Llambo(msgspec.Struct):
    ctx: int = 0


class _Model(msgspec.Struct):
    """A model of /v1/models; how much it holds some servers say, each in its own way."""

    id: str
    max_model_len: int | None = None
    meta: _Meta | None = None
    llambo: _Llambo | None = None

    @property
    def ctx(self) -> int:
        """Tokens; 0 where it is not told."""
        return self.max_model_len or (self.llambo.ctx if self.llambo else 0) or (self.meta.n_ctx if self.meta else 0)


class _Models(msgspec.Struct):
    data: list[_Model]


class _Generation(msgspec.Struct):
    n_ctx: int = 0


class _Props(msgspec.Struct):
    default_generation_settings: _Generation = msgspec.field(default_factory=_Generation)


class _Tokens(msgspec.Struct):
    tokens: list[int]


class HttpDoor:
    """The server at `url`; `token` goes with every request, and is shown nowhere.

    Raises: `BadRequest` for what is no URL.
    """

    def __init__(self, url: str, token: str = "") -> None:
        self._address, self.host = parse_url(url)
        self._token = token
        self._http = NodeHttp(self.host, self._address, api_key=token)
        self._clients: dict[str, OpenAiUpstream] = {}
        self._is_cluster = False

    @property
    def shows_token(self) -> bool:
        """Whether the token travels where others could read it: over plain HTTP, to another machine."""
        if not self._token or not self._address.startswith("http://"):
            return False
        try:
            return not ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host != "localhost"

    async def close(self) -> None:
        """Ends what is in flight."""
        for client in self._clients.values():
            await client.close()
        await self._http.close()

    async def models(self) -> dict[str, int]:
        """The models that the server lists, with the tokens that each holds (0: it does not say).

        Raises: `Unreachable`, `Refused`, `TimedOut`.
        """
        found = await self._look("/v1/models", _Models)
        models = {model.id: model.ctx for model in found.data}
        self._is_cluster = any(model.llambo is not None for model in found.data)
        if not models:
            raise NotFound(f"{self.host} serves no model at present")
        return models

    async def context_of(self, model: str, told: int) -> int:
        """The tokens that `model` holds: what a llama-server says itself, else what was `told` with its name."""
        if told:
            return told
        with suppress(LlamboError):
            props: _Props = await self._look("/props", _Props)
            return props.default_generation_settings.n_ctx
        return 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """As `Door.generate`; fusion needs a cluster's gateway there, which `models` finds out.

        Raises: `Unreachable` when the server is gone, `BadRequest` for fusion where there is none.
        """
        if request.fusion is not None and not self._is_cluster:
            raise BadRequest(f"{self.host} is no Llambo cluster, and has no fusion; leave --fusion out")
        try:
            events = self._answer(request) if request.fusion is None else self._fused(request)
            async with aclosing(events):
                async for event in events:
                    yield event
        except BadRequest as error:
            if _TOO_LONG.search(error.message):
                raise PromptTooLong(error.message) from None
            raise
        except EngineFailed as error:
            if _REFUSED in error.message:  # a list of models is shown to everybody, an answer is not
                raise self._refusal(401) from None
            raise
        except NodeLost as error:
            raise Unreachable(f"{self.host} went away: {error.message}") from None

    async def _answer(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        started = time.perf_counter()
        first = 0.0
        attempt = Attempt(request.raw_prompt or "", request.messages, request.sampling, request.stop)
        async with aclosing(self._client(request.model).stream(attempt)) as events:
            async for event in events:
                now = time.perf_counter()
                if isinstance(event, StreamEnd):
                    counts = (event.tokens, event.prompt_tokens, event.cached_tokens)
                    times = ((first or now) - started) * 1e3, (now - started) * 1e3
                    yield Done(event.finish_reason, request.model, "", *counts, *times)
                    return
                first = first or now
                yield event

    def _fused(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        return http_fusion.stream(self._http, request, stall_s=STALL_S)

    async def tokenize(self, text: str, *, model: str = "") -> list[int]:
        """As `Door.tokenize`, where the server has llama-server's endpoint. Raises: `EngineFailed` where not."""
        body: dict[str, Any] = {"content": text, "model": model}
        try:
            reply = await self._http.post("/tokenize", body, timeout_s=LOOK_S)
            return msgspec.json.decode(reply, type=_Tokens).tokens
        except (BadStatus, NodeLost, TimeoutError, *_MALFORMED):
            raise EngineFailed(f"{self.host} does not count tokens") from None

    def _client(self, model: str) -> OpenAiUpstream:
        if model not in self._clients:
            handle = NodeHandle(
                self.host, 0, self._address, self.host, slots=1, ctx=0, model=model, api_key=self._token
            )
            self._clients[model] = OpenAiUpstream(handle, stall_s=STALL_S)
        return self._clients[model]

    def _refusal(self, status: int) -> Refused:
        what = "refuses the token in LLAMBO_TOKEN" if self._token else "wants a token: set LLAMBO_TOKEN"
        return Refused(f"{self.host} {what} (HTTP status {status})")

    async def _look(self, path: str, kind: type[Any]) -> Any:
        try:
            async with asyncio.timeout(LOOK_S):
                return msgspec.json.decode(await self._http.get(path, timeout_s=None), type=kind)
        except BadStatus as error:
            if error.status in (401, 403):
                raise self._refusal(error.status) from None
            raise Unreachable(f"{self.host} has no {path}: HTTP status {error.status}") from None
        except NodeLost as error:
            raise Unreachable(f"{self.host} cannot be reached: {error.message}") from None
        except TimeoutError:
            raise TimedOut(f"{self.host} did not answer within {LOOK_S:g} s") from None
        except _MALFORMED:
            raise Unreachable(f"{self.host} answers, and not as a server of models does") from None
