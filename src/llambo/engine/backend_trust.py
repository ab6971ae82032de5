"""Whether a built backend may be used here: it computes what the wheel's own does, and does not crash.

Every test runs in processes of their own. Owns the questions, the comparison and its tolerance; remembers the verdict
in the store. Blocking; a few seconds for a backend.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llambo.core.errors import LlamboError
from llambo.engine import backend_store
from llambo.engine.backend_store import Built
from llambo.engine.models import BUILT_IN_PATH
from llambo.engine.trial import Setting, Trial, TrialFailed, TrialKilled

PROMPTS = (
    "What is distributed computing?",
    "A node is a process that holds one engine, and it shares nothing writable with another node. " * 6,
    "1, 2, 3, 4,",
)
TOKENS = 24
ALTERNATIVES = 5
TOLERANCE = 0.3
"""How far a token's log-probability may be from the wheel's: other instructions round otherwise.

Measured with the built-in model: AVX-512 with VNNI differs by up to 0.08; a fault differs by whole units.
"""
SLOTS = 8
THREADS = 2
TEST_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """One token of a greedy answer: its id, and the log-probabilities of the likeliest tokens by id."""

    id: int
    logprobs: dict[int, float]


Answer = tuple[Step, ...]


def answers_of(backend: str, model: Path = BUILT_IN_PATH, *, niceness: int = 0) -> list[Answer]:
    """Greedy answers to the questions, one by one and then all at once, by the backend in that directory.

    "" is the wheel's own. Raises: `TrialFailed`; `TrialLate` after `TEST_TIMEOUT_S` for all of it.
    """
    ends = time.monotonic() + TEST_TIMEOUT_S

    def left_s() -> float:
        return max(0.1, ends - time.monotonic())

    setting = Setting(str(model), backend, ctx=512, slots=SLOTS, threads=THREADS, batch=128)
    with Trial(setting, timeout_s=TEST_TIMEOUT_S, niceness=niceness) as trial:
        alone = [trial.complete(one, TOKENS, n_probs=ALTERNATIVES, timeout_s=left_s()) for one in PROMPTS]
        many = list(itertools.islice(itertools.cycle(PROMPTS), SLOTS))
        together = trial.complete_together(many, TOKENS, n_probs=ALTERNATIVES, timeout_s=left_s())
    return [_steps(answer) for answer in (*alone, *together)]


def _steps(answer: dict[str, Any]) -> Answer:
    steps = []
    try:
        for entry in answer.get("completion_probabilities", ()):
            logprobs = {int(one["id"]): _logprob(one) for one in entry["top_logprobs"]}
            steps.append(Step(int(entry["id"]), logprobs | {int(entry["id"]): _logprob(entry)}))
    except (TypeError, ValueError, KeyError) as error:
        raise TrialFailed(f"an answer has no log-probabilities as they should be: {error!r}") from None
    if len(steps) != TOKENS:
        raise TrialFailed(f"an answer has {len(steps)} tokens, not {TOKENS}")
    return tuple(steps)


def _logprob(one: dict[str, Any]) -> float:
    """NaN where llama.cpp says null, which is its word for that."""
    return float("nan") if one["logprob"] is None else float(one["logprob"])


def difference(expected: Answer, found: Answer) -> float:
    """The largest difference of a log-probability, token by token, as far as both texts are the same.

    Where they part, the token that was taken counts by how much less likely the other side holds it to be: between two
    that are as likely as each other, rounding may decide.
    """
    largest = 0.0
    for ours, theirs in zip(expected, found, strict=True):
        for token, logprob in ours.logprobs.items():
            other = theirs.logprobs.get(token)
            if other is not None:
                largest = max(largest, _apart(logprob, other))
        if ours.id != theirs.id:
            held = ours.logprobs.get(theirs.id)
            return max(largest, float("inf") if held is None else _apart(ours.logprobs[ours.id], held))
    return largest


def _apart(one: float, other: float) -> float:
    apart = abs(one - other)
    return apart if apart == apart else float("inf")  # NaN: no number came out  # noqa: PLR0124


class Reference:
    """The wheel's own answers, computed when they are first asked for."""

    def __init__(self, *, niceness: int = 0) -> None:
        self._niceness = niceness
        self._answers: list[Answer] | None = None

    def __call__(self) -> list[Answer]:
        """The answers. Raises: `TrialFailed` where the wheel itself does not give them."""
        if self._answers is None:
            self._answers = answers_of("", niceness=self._niceness)
        return self._answers


def self_test(built: Built, *, machine: str, reference: Callable[[], list[Answer]], niceness: int = 0) -> str:
    """Tests a backend and remembers the verdict; returns why it was set aside, or "".

    `reference` gives the wheel's own answers. Raises: `LlamboError` where not even those can be had, `TrialKilled`
    where somebody ended the test, `OSError`.
    """
    expected = reference()
    try:
        found = answers_of(str(built.directory), niceness=niceness)
        worst = max(difference(ours, theirs) for ours, theirs in zip(expected, found, strict=True))
        reason = "" if worst <= TOLERANCE else f"its answers are wrong: a log-probability is {worst:.3g} off"
    except TrialKilled:
        raise
    except LlamboError as error:
        reason = f"it failed its test: {error.message}"
    backend_store.note_verdict(built.directory, machine=machine, trusted=not reason, reason=reason)
    return reason
