"""Prompts that are JSON strings."""

from __future__ import annotations

import pytest

from llambo.core.quoted import unquoted


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ('"two\\nlines"', "two\nlines"),
        ('""', ""),
        ("plain", "plain"),
        ('"said" he', '"said" he'),
        ('"open', '"open'),
        ('"\\ud800"', '"\\ud800"'),
        ('"\udcff"', '"\udcff"'),
    ],
)
def test_what_is_a_json_string_as_a_whole_is_that_string_and_all_else_stays(written: str, meant: str) -> None:
    assert unquoted(written) == meant
