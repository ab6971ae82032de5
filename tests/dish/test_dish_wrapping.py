"""A text that comes in pieces, as a terminal shows it: the real screen of a terminal emulator is what is looked at."""

from __future__ import annotations

import pyte
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llambo.dish.wrapping import Wrapping

ROWS = 300


def shown(pieces: list[str], columns: int) -> list[str]:
    """The lines on a screen that was shown the pieces."""
    screen = pyte.Screen(columns, ROWS)
    screen.set_mode(pyte.modes.LNM)  # as a terminal's driver does: a new line begins at its start
    stream = pyte.Stream(screen)
    wrapping = Wrapping()
    for piece in pieces:
        stream.feed(wrapping.feed(piece, columns))
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("one two three", ["one two", "three"]),
        ("one two three four five", ["one two", "three four", "five"]),
        ("abcdefghij k", ["abcdefghij", "k"]),
        ("abcdefghijklmno p", ["abcdefghij", "klmno p"]),
        ("ab cdefghijklmno", ["ab", "cdefghijkl", "mno"]),
        ("abcdefghij \nk", ["abcdefghij", "k"]),
        ("one\n\ntwo", ["one", "", "two"]),
        ("a\tbc def", ["a       bc", "def"]),
        ("日本語日本語", ["日本語日本", "語"]),
        ("Añadió más", ["Añadió más"]),
        ("", []),
    ],
)
def test_lines_break_between_words(text: str, lines: list[str]) -> None:
    assert [line.replace(" ", "") for line in shown([text], 11)] == [line.replace(" ", "") for line in lines]


def test_a_word_that_grows_over_the_edge_moves_down_as_a_whole() -> None:
    assert shown(["one tw", "oth", "ree", "four"], 11) == ["one", "twothreefo", "ur"]
    assert shown(["one two th"], 11) == ["one two th"]
    assert shown(["one two th", "ree"], 11) == ["one two", "three"]


@given(st.lists(st.text("abcdefg \n", max_size=30), max_size=8), st.integers(5, 40))
def test_however_a_text_is_cut_it_looks_the_same_and_loses_no_word(pieces: list[str], columns: int) -> None:
    text = "".join(pieces)
    lines = shown(pieces, columns)
    assert lines == shown(list(text), columns)
    assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert all(len(line) < columns for line in lines)
    whole = [word for line in lines for word in line.split()]
    assert all(word in whole for word in text.split() if len(word) < columns)
