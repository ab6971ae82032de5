"""What a bridge says to a client, before it is a line or a frame. Pure data; a token is `core.types.TokenEvent`, a vote
`core.fusion.VoteCast`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from llambo.core.errors import LlamboError
from llambo.core.fusion import VoteCast
from llambo.core.fusion_document import fusion_document
from llambo.core.types import Done, TokenEvent

STARTING = "Starting token generation"


@dataclass(frozen=True, slots=True)
class Reply:
    """The whole answer to a command; `counts` stand beside `data`."""

    message: str
    data: object = None
    counts: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Started:
    """The first answer to a stream; whoever knows `request_id` may cancel it."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last answer to a stream that did not fail."""

    counts: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Failed:
    """The error that a command, or with `in_stream` a stream that had started, ended with; `data` is what was done."""

    error: LlamboError
    data: object = None
    in_stream: bool = False


Answer = Reply | Started | TokenEvent | VoteCast | Finished | Failed


def counts_of(done: Done) -> dict[str, object]:
    """The counts of a finished answer as they go over the wire, with the outcome where several nodes were asked."""
    fusion: dict[str, object] = {} if done.fusion is None else {"fusion": fusion_document(done.fusion)}
    return {
        "finish_reason": done.finish_reason,
        "model": done.model,
        "node": done.node,
        "tokens": done.tokens,
        "prompt_tokens": done.prompt_tokens,
        "cached_tokens": done.cached_tokens,
        "ttft_ms": round(done.ttft_ms, 3),
        "time_ms": round(done.time_ms, 3),
        "failovers": done.failovers,
        **fusion,
    }
