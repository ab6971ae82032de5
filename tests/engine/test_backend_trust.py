"""Trust before use: a backend is tested in a process of its own, and set aside with the reason."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from typing import Any

import pytest

from llambo.core import paths
from llambo.engine import backend_trust
from llambo.engine.backend_store import State
from llambo.engine.backend_trust import TOLERANCE, Answer, Reference, Step, difference
from llambo.engine.engines import Engines
from llambo.engine.processor import this_machine
from llambo.engine.trial import Trial, TrialFailed, TrialKilled
from tests.engine.backends import (
    CRASHES_WHEN_LOADED,
    CRASHES_WHEN_USED,
    HANGS_WHEN_LOADED,
    REFUSES,
    SAME_AS_WHEEL,
    needs_compiler,
    put_backend,
)


def _answer(*steps: tuple[int, dict[int, float]]) -> tuple[Step, ...]:
    return tuple(Step(token, logprobs) for token, logprobs in steps)


def test_equal_answers_differ_by_nothing() -> None:
    answer = _answer((1, {1: -0.1, 2: -3.0}), (5, {5: -0.2}))
    assert difference(answer, answer) == 0


def test_the_largest_difference_of_a_log_probability_counts() -> None:
    ours = _answer((1, {1: -0.1, 2: -3.0}), (5, {5: -0.2}))
    theirs = _answer((1, {1: -0.11, 2: -3.2}), (5, {5: -0.25}))
    assert difference(ours, theirs) == pytest.approx(0.2)


def test_where_texts_part_between_equally_likely_tokens_rounding_decides_and_the_rest_is_not_compared() -> None:
    ours = _answer((1, {1: -0.70, 2: -0.71}), (5, {5: -0.2}))
    theirs = _answer((2, {2: -0.70, 1: -0.71}), (9, {9: -7.0}))
    assert difference(ours, theirs) == pytest.approx(0.01)


def test_a_token_that_the_other_side_holds_unlikely_is_a_fault() -> None:
    assert difference(_answer((1, {1: -0.1, 2: -4.0})), _answer((2, {2: -4.0, 1: -0.1}))) > TOLERANCE
    assert difference(_answer((1, {1: -0.1})), _answer((2, {2: -0.1}))) == math.inf


def test_no_number_is_a_fault() -> None:
    assert difference(_answer((1, {1: -0.1})), _answer((1, {1: math.nan}))) == math.inf


def test_a_null_in_the_place_of_a_number_is_no_number() -> None:
    entry = {"id": 1, "logprob": None, "top_logprobs": [{"id": 1, "logprob": None}]}
    steps = backend_trust._steps({"completion_probabilities": [entry] * backend_trust.TOKENS})
    assert all(math.isnan(step.logprobs[1]) for step in steps)
    with pytest.raises(TrialFailed, match="no log-probabilities as they should be"):
        backend_trust._steps({"completion_probabilities": [{"id": 1}]})


def test_answers_at_once_are_compared_like_those_one_by_one() -> None:
    answers = Reference()()
    assert len(answers) == len(backend_trust.PROMPTS) + backend_trust.SLOTS
    for number, together in enumerate(answers[len(backend_trust.PROMPTS) :]):
        assert difference(answers[number % len(backend_trust.PROMPTS)], together) <= TOLERANCE


@needs_compiler
def test_a_test_that_somebody_ends_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    put_backend(paths.home(), SAME_AS_WHEEL)
    (built,) = Engines(paths.home()).built()
    answer = Trial.complete_together

    def killed(trial: Trial, *arguments: Any, **more: Any) -> list[dict[str, Any]]:
        os.kill(trial._pid, signal.SIGKILL)
        return answer(trial, *arguments, **more)

    expected = Reference()()
    monkeypatch.setattr(Trial, "complete_together", killed)
    with pytest.raises(TrialKilled, match="killed by signal 9"):
        backend_trust.self_test(built, machine=this_machine(), reference=lambda: expected)
    assert [one.state for one in Engines(paths.home()).built()] == [State.UNTESTED]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (SAME_AS_WHEEL, ""),
        (CRASHES_WHEN_LOADED, "it failed its test: the engine was killed by signal 6"),
        (CRASHES_WHEN_USED, "it failed its test: the engine was killed by signal 6"),
        (REFUSES, "it failed its test: it says itself that this processor cannot run it"),
        ("int nothing;", "it failed its test: the loader refuses it: "),
    ],
    ids=["works", "crashes when loaded", "crashes when used", "refuses", "is no backend"],
)
@needs_compiler
def test_a_backend_is_trusted_or_set_aside_with_the_reason(source: str, reason: str) -> None:
    put_backend(paths.home(), source)
    (built,) = Engines(paths.home()).built()
    found = backend_trust.self_test(built, machine=this_machine(), reference=Reference())
    assert found.startswith(reason) and bool(found) == bool(reason)
    (after,) = Engines(paths.home()).built()
    assert after.state is (State.SET_ASIDE if reason else State.TRUSTED)
    assert after.reason == found


@needs_compiler
def test_a_backend_that_hangs_is_set_aside_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    put_backend(paths.home(), HANGS_WHEN_LOADED)
    (built,) = Engines(paths.home()).built()
    reference = Reference()
    reference()  # before the time is cut short
    monkeypatch.setattr(backend_trust, "TEST_TIMEOUT_S", 2.0)
    found = backend_trust.self_test(built, machine=this_machine(), reference=reference)
    assert found == "it failed its test: the engine was not open in time"
    assert [one.state for one in Engines(paths.home()).built()] == [State.SET_ASIDE]


@needs_compiler
def test_a_backend_whose_answers_are_wrong_is_set_aside_with_how_far_they_are_off() -> None:
    put_backend(paths.home(), SAME_AS_WHEEL)
    (built,) = Engines(paths.home()).built()
    right = Reference()()
    first, *rest = right[0]
    wrong = replace(first, logprobs={token: value - 1.5 for token, value in first.logprobs.items()})
    expected: list[Answer] = [(wrong, *rest), *right[1:]]
    found = backend_trust.self_test(built, machine=this_machine(), reference=lambda: expected)
    assert found == "its answers are wrong: a log-probability is 1.5 off"
    assert [one.state for one in Engines(paths.home()).built()] == [State.SET_ASIDE]
