"""A cluster's door on the far side of a bridge: who has a `Door` need not know that there is a socket in between."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, cast

import msgspec

from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.client_calls import ChatOptions, Token
from llambo.cluster.door import DoorStatus
from llambo.core.errors import LlamboError
from llambo.core.fusion import VoteCast
from llambo.core.types import (
    Counters,
    Done,
    Event,
    FinishReason,
    GenerateRequest,
    LoadOptions,
    ModelInfo,
    TokenEvent,
)


class BridgeDoor:
    """The `llambo.cluster.door.Door` of the cluster that `bridge` reaches. The bridge stays the caller's to close.

    `status` is the snapshot of the last `refresh`, `load` or `free`, since it must not block.
    """

    def __init__(self, bridge: AsyncBridge) -> None:
        self._bridge = bridge
        self._status = DoorStatus((), Counters(), 0.0)

    async def refresh(self) -> DoorStatus:
        """Asks for the status and returns it."""
        data = await self._bridge.get_status()
        try:
            models = tuple(msgspec.convert(model, ModelInfo) for model in data["models"])
            counters = Counters(data["requests"], data["tokens"], data["errors"])
            self._status = DoorStatus(models, counters, data["uptime_s"])
        except (KeyError, TypeError, msgspec.ValidationError) as error:
            raise LlamboError(f"the bridge's status cannot be understood: {error}") from error
        return self._status

    def status(self) -> DoorStatus:
        """The snapshot that was taken last."""
        return self._status

    async def load(self, ref: str, *, name: str = "", options: LoadOptions | None = None) -> ModelInfo:
        """As `Door.load`; a path is read by the bridge, on its machine."""
        given = options or LoadOptions()
        loaded = await self._bridge.load_model(
            ref, name, ctx=given.ctx, slots=given.slots, threads=given.threads, gpu_layers=given.gpu_layers
        )
        for model in (await self.refresh()).models:
            if model.name == loaded["name"]:
                return model
        raise LlamboError(f"the model {loaded['name']} was freed as soon as it was loaded")

    async def free(self, name: str = "") -> None:
        """As `Door.free`."""
        await self._bridge.free_model(name)
        await self.refresh()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """As `Door.generate`. Counts that a cancelled answer lacks are 0."""
        async with aclosing(self._bridge.stream_votes(request.raw_prompt or "", **_options(request))) as events:
            async for event in events:
                if isinstance(event, VoteCast):
                    yield event
                else:
                    yield _done(event) if event.final else TokenEvent(event.text, event.ids, event.logprob)

    async def tokenize(self, text: str, *, model: str = "") -> list[int]:
        """As `Door.tokenize`."""
        return await self._bridge.tokenize(text, model=model)

    async def embed(self, text: str, *, model: str = "") -> list[float]:
        """As `Door.embed`."""
        return await self._bridge.embed(text, model=model)


def _options(request: GenerateRequest) -> ChatOptions:
    sampling, fusion = request.sampling, request.fusion
    options: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed,
        "model": request.model or None,
        "logprobs": request.logprobs or None,
        "stop": request.stop or None,
        "grammar": request.grammar or None,
        "json_schema": request.json_schema or None,
        "session": request.session or None,
        "node_type": request.node_type or None,
        "raw": True if request.raw_prompt is not None else None,
        "messages": request.messages or None,
        "fusion": fusion.strategy if fusion else None,
        "nodes": (fusion.voters or None) if fusion else None,
        "min_consensus": (fusion.min_consensus or None) if fusion else None,
        "extract": (fusion.extract or None) if fusion else None,
    }
    return cast(ChatOptions, {name: value for name, value in options.items() if value is not None})


def _done(token: Token) -> Done:
    return Done(
        cast(FinishReason, token.finish_reason),
        token.model,
        token.node,
        token.tokens or 0,
        token.prompt_tokens or 0,
        token.cached_tokens or 0,
        token.ttft_ms or 0.0,
        token.time_ms or 0.0,
        token.failovers,
        token.fusion,
    )
