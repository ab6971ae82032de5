"""Requests are checked where they are made."""

from __future__ import annotations

import math

import pytest

from llambo.core.errors import BadRequest
from llambo.core.types import GenerateRequest, LoadOptions, Message, Sampling


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 10**9),
        ("temperature", -0.1),
        ("temperature", 5.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 1.01),
        ("seed", -1),
        ("seed", 2**32 - 1),
    ],
)
def test_a_value_out_of_range_is_refused_and_never_clamped(field: str, value: float) -> None:
    with pytest.raises(BadRequest, match=f"{field} must be between"):
        Sampling(**{field: value})  # type: ignore[arg-type]


def test_the_ends_of_the_ranges_are_in_them() -> None:
    Sampling(max_tokens=1, temperature=0, top_p=0, seed=0)
    Sampling(max_tokens=1_048_576, temperature=5, top_p=1, seed=2**32 - 2)


@pytest.mark.parametrize("field", ["ctx", "slots", "threads"])
def test_load_options_are_never_negative(field: str) -> None:
    with pytest.raises(BadRequest, match=field):
        LoadOptions(**{field: -1})


def test_a_request_has_messages_or_a_raw_prompt_and_not_both() -> None:
    with pytest.raises(BadRequest):
        GenerateRequest()
    with pytest.raises(BadRequest):
        GenerateRequest(messages=(Message("user", "a"),), raw_prompt="b")
    assert GenerateRequest(raw_prompt="").raw_prompt == ""


@pytest.mark.parametrize("raw", [True, False])
def test_half_characters_are_refused(raw: bool) -> None:
    with pytest.raises(BadRequest, match="not valid Unicode text"):
        GenerateRequest.from_prompt("a\udcff", raw=raw)
    with pytest.raises(BadRequest, match="not valid Unicode text"):
        GenerateRequest.from_prompt("a", system="\ud800")


def test_a_prompt_is_one_user_message_after_the_system_prompt() -> None:
    request = GenerateRequest.from_prompt("hi", system="be brief")
    assert request.messages == (Message("system", "be brief"), Message("user", "hi"))
    assert GenerateRequest.from_prompt("hi", raw=True).raw_prompt == "hi"
    with pytest.raises(BadRequest, match="takes no system prompt"):
        GenerateRequest.from_prompt("hi", raw=True, system="be brief")
