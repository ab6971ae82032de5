"""Buckets of requests, with a clock of the tests' own."""

from __future__ import annotations

import pytest

from llambo.gateway.rates import Rates


def test_a_minutes_worth_may_come_at_once_and_then_one_at_a_time() -> None:
    rates = Rates(3)
    assert [rates.take("a", 0.0) for _ in range(3)] == [0, 0, 0]
    assert rates.take("a", 0.0) == pytest.approx(20)
    assert rates.take("a", 19.0) == pytest.approx(1)
    assert rates.take("a", 20.0) == 0
    assert rates.take("a", 20.0) == pytest.approx(20)


def test_a_bucket_never_holds_more_than_a_minutes_worth() -> None:
    rates = Rates(2)
    rates.take("a", 0.0)
    assert [rates.take("a", 1e6) for _ in range(3)][:2] == [0, 0]
    assert rates.take("a", 1e6) > 0


def test_one_key_costs_another_nothing() -> None:
    rates = Rates(1)
    assert rates.take("a", 0.0) == 0
    assert rates.take("a", 0.0) > 0
    assert rates.take("b", 0.0) == 0


def test_what_is_refused_is_not_taken() -> None:
    rates = Rates(1)
    rates.take("a", 0.0)
    for second in range(1, 60):
        assert rates.take("a", float(second)) > 0
    assert rates.take("a", 60.0) == 0


def test_keys_that_nobody_uses_do_not_fill_the_memory() -> None:
    rates = Rates(1)
    for number in range(20_001):
        rates.take(str(number), 0.0)
    assert len(rates._buckets) == 10_000
    assert rates.take("20000", 0.0) > 0, "the youngest are kept"


def test_no_requests_at_all_is_no_rate() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Rates(0)
