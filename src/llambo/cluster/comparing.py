"""When two answers are the same, and how like each other two are that differ. Pure; knows nothing of votes.

Likeness is chrF (Popović 2015, W15-3049), which needs no words and so is the same for every language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

CHARS, CHARS_OF_ALL = 16_384, 262_144
"""Answers are compared for likeness by so many of their first characters, and by fewer where the answers are many: the
work grows with the square of their number, and a character takes some hundred bytes."""
_ORDERS = range(1, 7)  # of chrF: the lengths of its character sequences
_BETA2 = 4.0  # of chrF: recall counts twice as much as precision

# What makes one number another one stays: a sign before it, and a point or comma inside it.
_IN_NUMBER = re.compile(r"(?<=\d)[.,](?=\d)|(?<!\w)[-\u2212](?=[.,]?\d)")


def normalised(text: str) -> str:
    """The text without what makes no difference: case, white space, punctuation, and forms of one character.

    Numbers keep their sign, point and comma. A text of nothing but punctuation stays what it is.
    """
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = {match.start() for match in _IN_NUMBER.finditer(folded)}
    words = "".join(
        character if at in kept or not unicodedata.category(character).startswith("P") else _gap(character)
        for at, character in enumerate(folded)
    ).replace("\u2212", "-")
    return " ".join(words.split()) or " ".join(folded.split())


def _gap(character: str) -> str:
    """What punctuation leaves behind: an apostrophe nothing, all else the space between two words."""
    return "" if character in "'\u2019" else " "


def chars_of(answers: int) -> int:
    """How many of its first characters each of so many answers is compared by."""
    return min(CHARS, CHARS_OF_ALL // answers)


class Grams:
    """The character sequences of a text's first `chars` characters, counted by their length; without white space."""

    def __init__(self, text: str, chars: int = CHARS) -> None:
        bare = "".join(text[:chars].split())
        self.counts = [Counter(bare[at : at + n] for at in range(len(bare) - n + 1)) for n in _ORDERS]
        self.sizes = [max(0, len(bare) - n + 1) for n in _ORDERS]


def both_ways(one: Grams, other: Grams) -> tuple[float, float]:
    """chrF with `one` as hypothesis and `other` as reference, and the other way round: each from 0 to 1.

    It is the F-score of the character sequences of length 1 to 6 that both have, with beta 2.
    """
    if not one.sizes[0] or not other.sizes[0]:
        same = float(one.sizes[0] == other.sizes[0])
        return same, same
    in_one = in_other = 0.0
    orders = 0
    for counts, others, size, other_size in zip(one.counts, other.counts, one.sizes, other.sizes, strict=True):
        if not size or not other_size:  # a text shorter than the sequence says nothing about it
            break
        small, large = (counts, others) if len(counts) <= len(others) else (others, counts)
        shared = sum(min(count, large[gram]) for gram, count in small.items() if gram in large)
        in_one += shared / size
        in_other += shared / other_size
        orders += 1
    return _f_score(in_one / orders, in_other / orders), _f_score(in_other / orders, in_one / orders)


def _f_score(precision: float, recall: float) -> float:
    below = _BETA2 * precision + recall
    return (1 + _BETA2) * precision * recall / below if below else 0.0
