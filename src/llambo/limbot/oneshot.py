"""One question, one answer: streams it to a writer and gives the whole with its counts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from llambo.core.fusion import VoteCast
from llambo.core.fusion_document import fusion_document
from llambo.core.types import Done, Event, GenerateRequest, TokenEvent


class Writer(Protocol):
    """Where the pieces of an answer go as they arrive."""

    def feed(self, text: str) -> None:
        """Shows one more piece."""
        ...

    def close(self) -> None:
        """Finishes what is shown; called exactly once, also after an error."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer."""

    text: str
    done: Done

    def document(self) -> dict[str, Any]:
        """The JSON document of `limbot --json` and `llamboctl infer --json` (SPEC section 2)."""
        return {
            "text": self.text,
            "finish_reason": self.done.finish_reason,
            "model": self.done.model,
            "node": self.done.node,
            "tokens": self.done.tokens,
            "prompt_tokens": self.done.prompt_tokens,
            "cached_tokens": self.done.cached_tokens,
            "ttft_ms": round(self.done.ttft_ms, 3),
            "time_ms": round(self.done.time_ms, 3),
            "failovers": self.done.failovers,
            "fusion": None if self.done.fusion is None else fusion_document(self.done.fusion),
        }


async def ask(
    generate: Callable[[GenerateRequest], AsyncGenerator[Event, None]],
    request: GenerateRequest,
    writer: Writer,
    voted: Callable[[VoteCast], object] = lambda _: None,
) -> Completion:
    """Streams the answer into `writer` and returns it whole; `voted` is told of each vote of a fusion.

    Raises: what the door's `generate` raises; the writer is closed all the same.
    """
    pieces: list[str] = []
    try:
        async with aclosing(generate(request)) as events:
            async for event in events:
                match event:
                    case TokenEvent(text):
                        pieces.append(text)
                        writer.feed(text)
                    case VoteCast():
                        voted(event)
                    case Done():
                        return Completion("".join(pieces), event)
    finally:
        writer.close()
    raise AssertionError("a stream of events ends in Done or raises")
