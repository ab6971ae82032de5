"""What a relayed reply says of itself: whether it is whole, and what the node counted.

Pure: reads the last events of a stream, each as `transcript.parsed` gives it, or a body, in the dialects of OpenAI,
Anthropic and llama-server. A count that is not told is 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from llambo.cluster.upstream_json import MALFORMED, count

_LAST_TYPES = frozenset({"message_stop", "response.completed", "response.incomplete", "response.failed"})


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens of the answer, of the prompt, and of the prompt in the node's cache; the time for the answer's."""

    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    decode_s: float = 0.0


def is_last(event: Any) -> bool:
    """Whether nothing can come after `event`."""
    if not isinstance(event, dict):
        return bool(event == b"[DONE]")
    return event.get("type") in _LAST_TYPES or (event.get("stop") is True and not event.get("index"))


def has_ended(tail: Iterable[Any]) -> bool:
    """Whether a stream with these last events is whole, now that its server has closed it."""
    return any(is_last(event) or _has_reason(event) for event in tail)


def _has_reason(value: Any) -> bool:
    choices = value.get("choices") if isinstance(value, dict) else None
    return isinstance(choices, list) and any(isinstance(c, dict) and c.get("finish_reason") for c in choices)


def counts_of_events(events: Iterable[Any]) -> Counts:
    """The counts that these events of a stream tell."""
    counts = Counts()
    for event in events:
        counts = _with(counts, event)
    return counts


def counts_of_body(body: bytes) -> Counts:
    """The counts that a whole reply tells."""
    try:
        return _with(Counts(), msgspec.json.decode(body))
    except MALFORMED:
        return Counts()


def _with(counts: Counts, value: Any) -> Counts:
    """`counts` with what `value` tells besides; what comes later counts."""
    if not isinstance(value, dict):
        return counts
    for inner in ("response", "message"):
        if isinstance(value.get(inner), dict):
            counts = _with(counts, value[inner])
    tokens, prompt, cached, decode_s = counts.tokens, counts.prompt_tokens, counts.cached_tokens, counts.decode_s
    usage = value.get("usage")
    if isinstance(usage, dict):
        tokens = _number(usage, "completion_tokens", "output_tokens") or tokens
        fresh = _number(usage, "prompt_tokens", "input_tokens")
        beside = _number(usage, "cache_read_input_tokens")  # Anthropic counts these apart
        prompt = fresh + beside or prompt
        details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
        cached = beside or (_number(details, "cached_tokens") if isinstance(details, dict) else 0) or cached
    timings = value.get("timings")
    if isinstance(timings, dict):
        tokens = _number(timings, "predicted_n") or tokens
        cached = _number(timings, "cache_n") or cached
        prompt = _number(timings, "prompt_n") + _number(timings, "cache_n") or prompt
        spent_ms = timings.get("predicted_ms")
        decode_s = max(0.0, spent_ms) / 1e3 if isinstance(spent_ms, int | float) else decode_s
    return Counts(tokens, prompt, cached, decode_s)


def _number(holder: dict[str, Any], *names: str) -> int:
    return next((count(holder[name]) for name in names if isinstance(holder.get(name), int)), 0)
