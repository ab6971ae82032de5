"""What the load generator asks, and when."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest

from bench.load.plan import Span, Workload, arrivals_s


def test_the_same_seed_gives_the_same_requests() -> None:
    one, other = Workload(seed=7, max_tokens=Span(8, 90)), Workload(seed=7, max_tokens=Span(8, 90))
    assert [one.body(number) for number in range(20)] == [other.body(number) for number in reversed(range(20))][::-1]


def test_requests_are_the_same_on_every_machine() -> None:
    bodies = b"".join(Workload(model="m", seed=1).body(number) for number in range(50))
    assert hashlib.sha256(bodies).hexdigest() == "a7e0a3556b0fcebf90d0d8fa3528bea728f0fd39f656605ac451ff05518454fd"


def test_requests_and_seeds_differ_from_each_other() -> None:
    assert len({Workload(seed=seed).body(number) for seed in range(5) for number in range(20)}) == 100


def test_lengths_stay_within_their_spans_and_use_all_of_them() -> None:
    workload = Workload(prompt_tokens=Span(13, 26), max_tokens=Span(3, 5), seed=2)
    bodies = [json.loads(workload.body(number)) for number in range(200)]
    assert {body["max_tokens"] for body in bodies} == {3, 4, 5}
    assert {len(body["messages"][0]["content"].split()) for body in bodies} == set(range(10, 21))


def test_completions_have_a_prompt_and_extra_members_win() -> None:
    workload = Workload(endpoint="completions", streams=False, extra={"temperature": 1.5, "ignore_eos": True})
    body = json.loads(workload.body(0))
    assert "messages" not in body and isinstance(body["prompt"], str)
    assert (body["stream"], body["temperature"], body["ignore_eos"]) == (False, 1.5, True)


def test_even_arrivals_are_as_far_apart_as_the_rate_says() -> None:
    assert arrivals_s("even", rate=4, count=5, seed=1) == [0, 0.25, 0.5, 0.75, 1]


def test_poisson_arrivals_have_the_rate_and_are_the_same_for_a_seed() -> None:
    moments = arrivals_s("poisson", rate=50, count=5000, seed=3)
    assert moments == sorted(moments)
    assert moments[-1] == pytest.approx(100, rel=0.05)
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert sum(gap > 0.02 for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.03)  # 1/e of them
    assert arrivals_s("poisson", rate=50, count=100, seed=3) == moments[:100]
    assert arrivals_s("poisson", rate=50, count=100, seed=4) != moments[:100]
