"""Trust before use: a backend is tested in a process of its own, and set aside with the reason."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest

from llambo.core import paths
from llambo.engine import backend_trust
from llambo.engine.backend_store import State
from llambo.engine.backend_trust import TOLERANCE, Reference, Step, difference
from llambo.engine.engines import Engines
from llambo.engine.processor import this_machine
from llambo.engine.trial import Setting, Trial, TrialFailed, TrialLate
from tests.engine.backends import (
    CRASHES_WHEN_LOADED,
    CRASHES_WHEN_USED,
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


def test_a_model_that_does_not_open_is_told_by_a_trial(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(TrialFailed, match="Failed to init server"):
        Trial(Setting(str(tmp_path / "bad.gguf")))


def test_a_trial_that_is_not_open_in_time_is_ended(tiny_model: Path) -> None:
    with pytest.raises(TrialLate):
        Trial(Setting(str(tiny_model)), timeout_s=0.001)


def test_a_trial_that_is_killed_says_so(tiny_model: Path) -> None:
    with Trial(Setting(str(tiny_model))) as trial:
        os.kill(trial._pid, signal.SIGKILL)
        with pytest.raises(TrialFailed, match="killed by signal 9"):
            trial.complete("word", 2)


def test_a_trial_answers_and_leaves_nothing(tiny_model: Path) -> None:
    with Trial(Setting(str(tiny_model), slots=2)) as trial:
        directory = trial._directory
        one, two = trial.complete_together(["a node", "a slot"], 3)
        assert one["tokens_predicted"] == two["tokens_predicted"] == 3
        assert trial.private_bytes() > 0
    assert not directory.exists()
