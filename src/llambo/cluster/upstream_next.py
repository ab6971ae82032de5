"""How llama.cpp's server is asked for one step of an answer: the likeliest next tokens after given ones.

Knows the fields of /completion that this takes, and nothing of connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from llambo.cluster.mixing import TOP_K, Candidate, NextToken
from llambo.cluster.upstream_json import count


class _Candidate(msgspec.Struct):
    id: int
    logprob: float
    bytes: list[int] = []


class _Position(msgspec.Struct):
    top_logprobs: list[_Candidate] = []


class _Timings(msgspec.Struct):
    cache_n: int = 0


class Step(msgspec.Struct):
    """A reply of /completion to `body`, as far as it is read here."""

    stop_type: str = ""
    tokens_evaluated: int = 0
    completion_probabilities: list[_Position] = []
    timings: _Timings | None = None


decode_step = msgspec.json.Decoder(Step).decode


def body(ids: Sequence[int]) -> dict[str, Any]:
    """What is posted: greedy, so that the node's own choice, whose end it tells, is its likeliest token."""
    return {
        "prompt": list(ids),
        "n_predict": 1,
        "n_probs": TOP_K,
        "temperature": 0,
        "cache_prompt": True,
        "stream": False,
    }


def next_token(step: Step) -> NextToken | None:
    """What the reply says; None where it tells no token."""
    found = step.completion_probabilities[0].top_logprobs if step.completion_probabilities else []
    candidates = tuple(
        Candidate(one.id, bytes(byte & 0xFF for byte in one.bytes), min(0.0, one.logprob)) for one in found
    )
    if not candidates:
        return None
    return NextToken(
        candidates,
        ends=step.stop_type == "eos",
        prompt_tokens=count(step.tokens_evaluated),
        cached_tokens=count(step.timings.cache_n if step.timings else 0),
    )
